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

_CHECK_EPOCH = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED') end
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

# KEYS groups leases owners unapplied bytes appended attempts; ARGV server index group_id field payload
# -> entry id, 'duplicate' (this index is in the stream already) or 'lease lost'
APPEND = """
local index = ARGV[2]
if redis.call('sismember', KEYS[4], index) == 1 then return 'duplicate' end
if redis.call('hget', KEYS[3], index) ~= ARGV[1] then return 'lease lost' end
local id = redis.call('xadd', KEYS[1], '*', 'group_id', ARGV[3], 'prompt_index', index, ARGV[4], ARGV[5])
redis.call('zrem', KEYS[2], index)
redis.call('hdel', KEYS[3], index)
redis.call('hdel', KEYS[7], index)
redis.call('sadd', KEYS[4], index)
redis.call('incrby', KEYS[5], #ARGV[5])
redis.call('incr', KEYS[6])
return id
"""

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

# KEYS epoch groups bytes; ARGV epoch consumer_group entry_id... -> bytes freed
DELETE = (
    _ALLOW_AT_MAXMEMORY
    + _CHECK_EPOCH
    + _OWN_ENTRY
    + """
local freed = 0
for i = 3, #ARGV do
  local entry = redis.call('xrange', KEYS[2], ARGV[i], ARGV[i])
  if entry[1] and own(entry[1][2]) then freed = freed + #entry[1][2][6] end
  redis.call('xack', KEYS[2], ARGV[2], ARGV[i])
  redis.call('xdel', KEYS[2], ARGV[i])
end
if redis.call('decrby', KEYS[3], freed) < 0 then redis.call('set', KEYS[3], 0) end
return freed
"""
)

# KEYS epoch groups cursor returned unapplied bytes owners; ARGV epoch first last first last ... (finished intervals)
# -> {entries in the stream, bytes, unapplied, returned}
# Rebuilds what admission counts from what is really there: the ledger, the stream and the leases.
RESTORE = (
    _ALLOW_AT_MAXMEMORY
    + _CHECK_EPOCH
    + _OWN_ENTRY
    + """
local known, unapplied, returned, entries, bytes = {}, 0, 0, 0, 0
local cursor = tonumber(redis.call('get', KEYS[3]) or 0)
local function finished(index)
  for i = 2, #ARGV, 2 do
    if index >= tonumber(ARGV[i]) and index <= tonumber(ARGV[i + 1]) then return true end
  end
  return false
end
redis.call('del', KEYS[4], KEYS[5])
for i = 2, #ARGV, 2 do cursor = math.max(cursor, tonumber(ARGV[i + 1]) + 1) end
for _, owned in ipairs(redis.call('hkeys', KEYS[7])) do
  local index = tonumber(owned)
  if index and index >= 0 and index < cursor + 100000 and index == math.floor(index) then
    known[index] = true
    cursor = math.max(cursor, index + 1)
  end
end
local bound = cursor + 100000 -- beyond it, an index is no prompt of this run, even where the cursor was lost
local start = '-'
while true do
  local page = redis.call('xrange', KEYS[2], start, '+', 'COUNT', 64)
  for _, entry in ipairs(page) do
    local index = own(entry[2]) and tonumber(entry[2][4])
    entries = entries + 1
    if index and index >= 0 and index < bound and index == math.floor(index) then
      bytes = bytes + #entry[2][6]
      known[index] = true
      cursor = math.max(cursor, index + 1)
      if not finished(index) then
        unapplied = unapplied + redis.call('sadd', KEYS[5], string.format('%.0f', index))
      end
    end
    start = '(' .. entry[1]
  end
  if #page == 0 then break end
end
local function give_out_again(first, last)
  for index = first, last do
    if not known[index] then
      redis.call('zadd', KEYS[4], index, string.format('%.0f', index))
      returned = returned + 1
    end
  end
end
local next_index = 0
for i = 2, #ARGV, 2 do
  give_out_again(next_index, tonumber(ARGV[i]) - 1)
  next_index = tonumber(ARGV[i + 1]) + 1
end
give_out_again(next_index, cursor - 1)
redis.call('set', KEYS[3], string.format('%.0f', cursor))
redis.call('set', KEYS[6], string.format('%.0f', bytes))
return {entries, bytes, unapplied, returned}
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
