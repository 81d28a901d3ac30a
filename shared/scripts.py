"""The Lua scripts: what has to be one atomic step in Redis, and nothing else.

Two habits in all of them. Time is Redis's own (TIME), so clocks of machines do not matter. Scripts that
free memory or keep a lease alive begin with `del` of a key that never exists: it is a write that is
allowed at maxmemory, and after it Redis lets the script's other writes through.
"""

_NOW = """
local t = redis.call('time')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""

# Locals leases, clock and lease_ms. A lease runs out only while Redis answers: after a silence in which nobody could
# renew, everybody gets one lease time of grace. Every request of every server keeps the clock going.
_TICK = """
local last = tonumber(redis.call('get', clock) or now)
redis.call('set', clock, now)
if now - last > lease_ms / 2 then
  for _, index in ipairs(redis.call('zrangebyscore', leases, '-inf', now)) do
    redis.call('zadd', leases, now + lease_ms, index)
  end
end
"""

# An entry as APPEND writes it; whatever else is in the stream was put there by somebody else.
_OWN_ENTRY = """
local function own(fields)
  return #fields == 6 and fields[1] == 'group_id' and fields[3] == 'prompt_index'
end
"""

_ALLOW_AT_MAXMEMORY = "redis.call('del', KEYS[1] .. ':never')\n"

# A higher epoch is another learner's. None, or a lower one, is a past that Redis has fallen back into.
_CHECK_EPOCH = """
local epoch = tonumber(redis.call('get', KEYS[1]) or 0)
if epoch > tonumber(ARGV[1]) then return redis.error_reply('FENCED') end
if epoch < tonumber(ARGV[1]) then return redis.error_reply('DATALOSS ' .. string.format('%.0f', epoch)) end
"""

# KEYS cursor leases owners returned unapplied bytes latest clock desired phase parents
# ARGV server want versions groups_per_version byte_budget group_bytes lease_ms served_version lag
# -> {reason, index...}: the reason is why fewer than `want` were given, '' if none.
LEASE = (
    """
local cursor, leases, owners, returned, unapplied = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
"""
    + _NOW
    + """
local lease_ms = tonumber(ARGV[7])
local phase = redis.call('hget', KEYS[10], 'phase')
if phase == 'finished' or phase == 'failed' then return {phase} end
if redis.call('hget', KEYS[9], 'paused') == '1' then return {'paused by the operator'} end

local clock = KEYS[8]
"""
    + _TICK
    + """
for _, index in ipairs(redis.call('zrangebyscore', leases, '-inf', now)) do
  redis.call('zrem', leases, index)
  redis.call('hdel', owners, index)
  redis.call('zadd', returned, index, index)
end

-- Every version that the server is behind what it is to serve has used up a version's worth of credit.
local version = redis.call('hget', KEYS[7], 'policy_version')
if not version then return {'no published version yet'} end
local versions = tonumber(ARGV[3])
local behind = -tonumber(ARGV[9])
while version and version ~= ARGV[8] and behind < versions do
  version = redis.call('hget', KEYS[11], version)
  behind = behind + 1
end
if behind >= versions or version ~= ARGV[8] then return {'weights are behind'} end

local leased = redis.call('zcard', leases)
local room = (versions - math.max(behind, 0)) * tonumber(ARGV[4]) - leased - redis.call('scard', unapplied)
local reason = 'staleness credit'
local free = tonumber(ARGV[5]) - tonumber(redis.call('get', KEYS[6]) or 0)
local byte_room = math.floor(free / tonumber(ARGV[6])) - leased
if byte_room < room then room, reason = byte_room, 'byte credit' end
local n = math.min(tonumber(ARGV[2]), room)
if n >= tonumber(ARGV[2]) then reason = '' end

local given = {reason}
for _ = 1, n do
  local first = redis.call('zpopmin', returned)
  local index = first[1] or string.format('%.0f', redis.call('incr', cursor) - 1)
  redis.call('zadd', leases, now + lease_ms, index)
  redis.call('hset', owners, index, ARGV[1])
  given[#given + 1] = index
end
return given
"""
)

# KEYS owners leases clock; ARGV server lease_ms -> number of leases renewed
RENEW = (
    _ALLOW_AT_MAXMEMORY
    + _NOW
    + """
local leases, clock, lease_ms = KEYS[2], KEYS[3], tonumber(ARGV[2])
"""
    + _TICK
    + """
local owned = redis.call('hgetall', KEYS[1])
local renewed = 0
for i = 1, #owned, 2 do
  if owned[i + 1] == ARGV[1] then
    redis.call('zadd', leases, 'XX', now + lease_ms, owned[i])
    renewed = renewed + 1
  end
end
return renewed
"""
)

# KEYS leases owners returned attempts; ARGV server count_attempt index... -> attempts of each index so far
GIVE_BACK = (
    _ALLOW_AT_MAXMEMORY
    + """
local attempts = {}
for i = 3, #ARGV do
  local index = ARGV[i]
  local n = 0
  if redis.call('hget', KEYS[2], index) == ARGV[1] then
    if ARGV[2] == '1' then n = redis.call('hincrby', KEYS[4], index, 1) end
    redis.call('zrem', KEYS[1], index)
    redis.call('hdel', KEYS[2], index)
    redis.call('zadd', KEYS[3], index, index)
  end
  attempts[#attempts + 1] = n
end
return attempts
"""
)

# KEYS groups leases owners unapplied bytes appended attempts acknowledged
# ARGV server index group_id field payload known
# -> {what, count}: what is 'stored', 'duplicate' (this index is in the stream already), 'lease lost', or 'data lost':
# Redis remembers fewer appends of this server than the server does (known), and nothing was done.
# count is how many appends of this server Redis remembers now.
APPEND = """
local index = ARGV[2]
local count = tonumber(redis.call('hget', KEYS[8], ARGV[1]) or 0)
if count < tonumber(ARGV[6]) then return {'data lost', count} end
if redis.call('sismember', KEYS[4], index) == 1 then return {'duplicate', count} end
if redis.call('hget', KEYS[3], index) ~= ARGV[1] then return {'lease lost', count} end
redis.call('xadd', KEYS[1], '*', 'group_id', ARGV[3], 'prompt_index', index, ARGV[4], ARGV[5])
redis.call('zrem', KEYS[2], index)
redis.call('hdel', KEYS[3], index)
redis.call('hdel', KEYS[7], index)
redis.call('sadd', KEYS[4], index)
redis.call('incrby', KEYS[5], #ARGV[5])
redis.call('incr', KEYS[6])
return {'stored', redis.call('hincrby', KEYS[8], ARGV[1], 1)}
"""

# A claim is "<index> <cause> <id>", and stays until the learner has written down what it says.
_CLAIM = """
local t = redis.call('time')
local function claim(list, index, cause)
  redis.call('rpush', list, string.format('%.0f %s %s.%s-%.0f', index, cause, t[1], t[2], index))
end
"""

# KEYS claims unapplied owners leases returned; ARGV server index... -> how many of them are lost
# What a server knows to be acknowledged and Redis does not: the learner is told, and a lease that came back with the
# past is given back.
CLAIM_LOST = (
    _ALLOW_AT_MAXMEMORY
    + _CLAIM
    + """
local lost = 0
for i = 2, #ARGV do
  local index = ARGV[i]
  if redis.call('sismember', KEYS[2], index) == 0 then
    claim(KEYS[1], tonumber(index), 'forgotten')
    lost = lost + 1
    if redis.call('hget', KEYS[3], index) == ARGV[1] then
      redis.call('hdel', KEYS[3], index)
      redis.call('zrem', KEYS[4], index)
      redis.call('zadd', KEYS[5], index, index)
    end
  end
end
return lost
"""
)

# KEYS epoch claims returned; ARGV epoch how_many index... : the learner has dealt with so many claims; the indices are
# those that it has after all, so nobody needs to draw them again
SETTLE_CLAIMS = (
    _ALLOW_AT_MAXMEMORY
    + _CHECK_EPOCH
    + """
redis.call('ltrim', KEYS[2], ARGV[2], -1)
for i = 3, #ARGV do redis.call('zrem', KEYS[3], ARGV[i]) end
return 1
"""
)

# KEYS epoch unapplied; ARGV epoch index...
RELEASE = (
    _ALLOW_AT_MAXMEMORY
    + _CHECK_EPOCH
    + """
for i = 2, #ARGV do redis.call('srem', KEYS[2], ARGV[i]) end
return #ARGV - 1
"""
)

# KEYS epoch unapplied latest parents; ARGV epoch version parent step oldest_kept index...
ANNOUNCE = (
    _ALLOW_AT_MAXMEMORY
    + _CHECK_EPOCH
    + """
local latest = tonumber(redis.call('hget', KEYS[3], 'policy_version') or -1)
if tonumber(ARGV[2]) <= latest then
  return redis.error_reply('version ' .. ARGV[2] .. ' is not above the latest, ' .. latest)
end
redis.call('hset', KEYS[3], 'policy_version', ARGV[2], 'parent', ARGV[3], 'step', ARGV[4])
redis.call('hset', KEYS[4], ARGV[2], ARGV[3])
for _, version in ipairs(redis.call('hkeys', KEYS[4])) do
  if tonumber(version) < tonumber(ARGV[5]) then redis.call('hdel', KEYS[4], version) end
end
for i = 6, #ARGV do redis.call('srem', KEYS[2], ARGV[i]) end
return 1
"""
)

# KEYS epoch parents; ARGV epoch version parent version parent ...: what a Redis that lost its data has to know again
RESTORE_PARENTS = (
    _ALLOW_AT_MAXMEMORY
    + _CHECK_EPOCH
    + """
for i = 2, #ARGV, 2 do redis.call('hset', KEYS[2], ARGV[i], ARGV[i + 1]) end
return 1
"""
)

# KEYS epoch phase; ARGV epoch phase reason at (an epoch of 0 is nobody's: whoever starts the processes may speak too)
SET_PHASE = (
    _ALLOW_AT_MAXMEMORY
    + """
if ARGV[1] ~= '0' then
"""
    + _CHECK_EPOCH
    + """
end
redis.call('hset', KEYS[2], 'phase', ARGV[2], 'reason', ARGV[3], 'at', ARGV[4])
return 1
"""
)

# KEYS epoch history; ARGV epoch row rows_kept (an epoch of 0 as above)
ADD_HISTORY = (
    """
if ARGV[1] ~= '0' then
"""
    + _CHECK_EPOCH
    + """
end
redis.call('xadd', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'row', ARGV[2])
return 1
"""
)

# KEYS epoch groups bytes; ARGV epoch consumer_group entry_id... -> {bytes freed, entries that were not there any more}
DELETE = (
    _ALLOW_AT_MAXMEMORY
    + _CHECK_EPOCH
    + _OWN_ENTRY
    + """
local freed, missing = 0, 0
for i = 3, #ARGV do
  local entry = redis.call('xrange', KEYS[2], ARGV[i], ARGV[i])
  if entry[1] and own(entry[1][2]) then freed = freed + #entry[1][2][6] end
  redis.call('xack', KEYS[2], ARGV[2], ARGV[i])
  missing = missing + 1 - redis.call('xdel', KEYS[2], ARGV[i])
end
if redis.call('decrby', KEYS[3], freed) < 0 then redis.call('set', KEYS[3], 0) end
return {freed, missing}
"""
)

# Locals kept, letters, totals, buried and bound: drops the oldest dead letters until the rest is within the bound.
_DROP_OLDEST = """
while kept > bound do
  local oldest = redis.call('xrange', letters, '-', '+', 'COUNT', 1)[1]
  if not oldest then break end
  local field = {}
  for i = 1, #oldest[2], 2 do field[oldest[2][i]] = oldest[2][i + 1] end
  kept = kept - tonumber(field.cost)
  redis.call('xdel', letters, oldest[1])
  local ended_as = oldest[1] .. ' ' .. field.reason
  if redis.call('hget', buried, field.prompt_index) == ended_as then redis.call('hdel', buried, field.prompt_index) end
  redis.call('hincrby', totals, 'dropped:' .. field.reason, 1)
  redis.call('hincrby', totals, 'dropped_bytes:' .. field.reason, #field.payload)
end
redis.call('hset', totals, 'kept', kept)
"""

# KEYS epoch groups bytes dead_letters totals buried unapplied
# ARGV epoch consumer_group bound overhead entry_id group_id prompt_index reason error server at payload
# -> 1, or 0 where this entry was moved already (the answer was lost)
# Moves an entry to the dead letters in one step: it is never in both places, never in neither, and what it is put
# down to outlasts the learner. What is moved frees as much as it takes, so it is allowed at maxmemory.
DEAD_LETTER = (
    _ALLOW_AT_MAXMEMORY
    + _CHECK_EPOCH
    + _OWN_ENTRY
    + """
local groups, letters, totals, buried, index, reason = KEYS[2], KEYS[4], KEYS[5], KEYS[6], ARGV[7], ARGV[8]
local last = redis.call('xrevrange', letters, '+', '-', 'COUNT', 1)[1]
if last then
  for i = 1, #last[2], 2 do
    if last[2][i] == 'entry_id' and last[2][i + 1] == ARGV[5] then return 0 end
  end
end
local entry = redis.call('xrange', groups, ARGV[5], ARGV[5])[1]
local freed = entry and own(entry[2]) and #entry[2][6] or 0
redis.call('xack', groups, ARGV[2], ARGV[5])
redis.call('xdel', groups, ARGV[5])
if redis.call('decrby', KEYS[3], freed) < 0 then redis.call('set', KEYS[3], 0) end

local bound, cost, payload = tonumber(ARGV[3]), tonumber(ARGV[4]) + #ARGV[12], ARGV[12]
local kept = tonumber(redis.call('hget', totals, 'kept') or 0)
redis.call('hincrby', totals, 'count:' .. reason, 1)
redis.call('hincrby', totals, 'bytes:' .. reason, #payload)
if cost > bound then
  redis.call('hincrby', totals, 'dropped_bytes:' .. reason, #payload)
  cost, payload = tonumber(ARGV[4]), ''
end
local id = redis.call('xadd', letters, '*', 'group_id', ARGV[6], 'prompt_index', index, 'reason', reason,
  'error', ARGV[9], 'entry_id', ARGV[5], 'server', ARGV[10], 'at', ARGV[11], 'size', #ARGV[12], 'cost', cost,
  'payload', payload)
if tonumber(index) >= 0 then
  redis.call('hset', buried, index, id .. ' ' .. reason)
  redis.call('srem', KEYS[7], index)
end
kept = kept + cost
"""
    + _DROP_OLDEST
    + """
return 1
"""
)

# KEYS dead_letters totals buried groups unapplied bytes owners returned; ARGV id run_id -> what became of it
# Puts a dead letter's payload back into the stream, as its server had appended it.
REQUEUE = """
local letters, totals, buried = KEYS[1], KEYS[2], KEYS[3]
local letter = redis.call('xrange', letters, ARGV[1], ARGV[1])[1]
if not letter then return 'there is no such dead letter' end
local field = {}
for i = 1, #letter[2], 2 do field[letter[2][i]] = letter[2][i + 1] end
local index = field.prompt_index
if not index or tonumber(index) < 0 or field.group_id ~= ARGV[2] .. ':' .. index then
  return 'refused: it is no group of this run'
end
if not field.cost or field.payload == '' then return 'refused: its payload was not kept' end
if redis.call('hget', buried, index) ~= ARGV[1] .. ' ' .. field.reason then
  return 'refused: prompt ' .. index .. ' has ended in another way'
end
if redis.call('sismember', KEYS[5], index) == 1 then return 'refused: a group of prompt ' .. index .. ' is waiting' end
if redis.call('hexists', KEYS[7], index) == 1 then return 'refused: prompt ' .. index .. ' is being drawn again' end
redis.call('xadd', KEYS[4], '*', 'group_id', field.group_id, 'prompt_index', index, 'payload', field.payload)
redis.call('sadd', KEYS[5], index)
redis.call('incrby', KEYS[6], #field.payload)
redis.call('zrem', KEYS[8], index)
redis.call('hdel', buried, index)
redis.call('xdel', letters, ARGV[1])
redis.call('hincrby', totals, 'requeued:' .. field.reason, 1)
redis.call('hincrby', totals, 'kept', -tonumber(field.cost))
return 'requeued'
"""

# KEYS epoch groups cursor returned unapplied bytes owners appended claims
# ARGV epoch named in_hand index*in_hand first last first last ... (finished intervals)
# -> the epoch that Redis had
# Rebuilds what admission counts from what is really there: the ledger, the stream, the leases, and the groups that the
# learner has in hand. An index below the cursor that is in none of these and that nobody was to draw again was
# appended once, and its entry was taken out of the stream by somebody else: the learner hears of it as of a claim.
# The learner of the highest epoch takes a Redis over that has lost its data.
RESTORE = (
    _ALLOW_AT_MAXMEMORY
    + _OWN_ENTRY
    + _CLAIM
    + """
local epoch = tonumber(redis.call('get', KEYS[1]) or 0)
if epoch > tonumber(ARGV[1]) then return redis.error_reply('FENCED') end
redis.call('set', KEYS[1], ARGV[1])

local known, bytes, ended, lost = {}, 0, 0, 0
local cursor = tonumber(redis.call('get', KEYS[3]) or 0)
local given_out = cursor
local intervals = 4 + tonumber(ARGV[3])
local function text(index) return string.format('%.0f', index) end
local function finished(index)
  for i = intervals, #ARGV, 2 do
    if index >= tonumber(ARGV[i]) and index <= tonumber(ARGV[i + 1]) then return true end
  end
  return false
end
local to_draw = {}
for _, index in ipairs(redis.call('zrange', KEYS[4], 0, -1)) do to_draw[tonumber(index) or -1] = true end
redis.call('del', KEYS[4], KEYS[5])
for i = 4, intervals - 1 do
  known[tonumber(ARGV[i])] = true
  cursor = math.max(cursor, tonumber(ARGV[i]) + 1)
  redis.call('sadd', KEYS[5], ARGV[i])
end
for i = intervals, #ARGV, 2 do
  cursor = math.max(cursor, tonumber(ARGV[i + 1]) + 1)
  ended = ended + tonumber(ARGV[i + 1]) - tonumber(ARGV[i]) + 1
end
for _, owned in ipairs(redis.call('hkeys', KEYS[7])) do
  local index = tonumber(owned)
  if index and index >= 0 and index < cursor + 100000 and index == math.floor(index) then
    known[index] = true
    cursor = math.max(cursor, index + 1)
  end
end
local bound = cursor + 100000 -- beyond it, an index is no prompt of this run, even where the cursor was lost
local start, at_once, seen = '-', 1, 0
while true do
  local page = redis.call('xrange', KEYS[2], start, '+', 'COUNT', at_once)
  for _, entry in ipairs(page) do
    local index = own(entry[2]) and tonumber(entry[2][4])
    seen = seen + 1
    if index and index >= 0 and index < bound and index == math.floor(index) then
      bytes = bytes + #entry[2][6]
      known[index] = true
      cursor = math.max(cursor, index + 1)
      if not finished(index) then redis.call('sadd', KEYS[5], text(index)) end
    end
    start = '(' .. entry[1]
  end
  if #page == 0 then break end
  at_once = math.max(1, math.min(64, math.floor(1048576 * seen / math.max(1, bytes)))) -- about a MiB in memory
end
local function give_out_again(first, last)
  for index = first, last do
    if not known[index] then
      redis.call('zadd', KEYS[4], index, text(index))
      if index < given_out and not to_draw[index] then
        claim(KEYS[9], index, 'taken_out')
        lost = lost + 1
      end
    end
  end
end
local next_index = 0
for i = intervals, #ARGV, 2 do
  give_out_again(next_index, tonumber(ARGV[i]) - 1)
  next_index = tonumber(ARGV[i + 1]) + 1
end
give_out_again(next_index, cursor - 1)
redis.call('set', KEYS[3], text(cursor))
redis.call('set', KEYS[6], text(bytes))
local acknowledged = ended + redis.call('scard', KEYS[5]) + tonumber(ARGV[2]) + lost
if tonumber(redis.call('get', KEYS[8]) or 0) < acknowledged then redis.call('set', KEYS[8], text(acknowledged)) end
return epoch
"""
)

# KEYS evaluation_jobs; ARGV policy_version lease_ms claimer heartbeat_prefix -> 1 if the job is ours now
# A job's value is "<claimed until> <claimer>"; a claim ends with its time, or with its claimer's heartbeat.
CLAIM_EVALUATION = (
    _NOW
    + """
local claim = redis.call('hget', KEYS[1], ARGV[1])
if not claim then return 0 end
local claimed_until, claimer = string.match(claim, '^(%S*) (.*)$')
local held = tonumber(claimed_until) > now and claimer ~= ARGV[3]
if held and redis.call('exists', ARGV[4] .. claimer) == 1 then return 0 end
redis.call('hset', KEYS[1], ARGV[1], string.format('%.0f', now + tonumber(ARGV[2])) .. ' ' .. ARGV[3])
return 1
"""
)

# KEYS evaluation_jobs; ARGV policy_version -> 1 if there was such a job
RELEASE_EVALUATION = """
if redis.call('hexists', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('hset', KEYS[1], ARGV[1], '0 ')
return 1
"""

# KEYS members heartbeat; ARGV component status ttl_ms
HEARTBEAT = (
    _ALLOW_AT_MAXMEMORY
    + """
redis.call('sadd', KEYS[1], ARGV[1])
redis.call('set', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
"""
)

ALL: tuple[str, ...] = tuple(source for name, source in sorted(globals().items()) if name.isupper() and name[0] != "_")
