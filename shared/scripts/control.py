"""Versions, phase, evaluations and heartbeats."""

from shared.scripts.parts import ALLOW_AT_MAXMEMORY, CHECK_EPOCH, NOW

# KEYS epoch unapplied latest parents; ARGV epoch version parent step oldest_kept copy depth credit in_order
#      oldest index...
# copy: '=' where a restore publishes its parent's weights again, else ''
ANNOUNCE = (
    ALLOW_AT_MAXMEMORY
    + CHECK_EPOCH
    + """
local latest = tonumber(redis.call('hget', KEYS[3], 'policy_version') or -1)
if tonumber(ARGV[2]) <= latest then
  return redis.error_reply('version ' .. ARGV[2] .. ' is not above the latest, ' .. latest)
end
redis.call('hset', KEYS[3], 'policy_version', ARGV[2], 'parent', ARGV[3], 'step', ARGV[4],
  'depth', ARGV[7], 'credit', ARGV[8], 'in_order', ARGV[9], 'oldest', ARGV[10])
redis.call('hset', KEYS[4], ARGV[2], ARGV[3] .. ARGV[6])
for _, version in ipairs(redis.call('hkeys', KEYS[4])) do
  if tonumber(version) < tonumber(ARGV[5]) then redis.call('hdel', KEYS[4], version) end
end
for i = 11, #ARGV do redis.call('srem', KEYS[2], ARGV[i]) end
return 1
"""
)

# KEYS epoch phase; ARGV epoch phase reason at (an epoch of 0 is nobody's: whoever starts the processes may speak too)
SET_PHASE = (
    ALLOW_AT_MAXMEMORY
    + """
if ARGV[1] ~= '0' then
"""
    + CHECK_EPOCH
    + """
end
redis.call('hset', KEYS[2], 'phase', ARGV[2], 'reason', ARGV[3], 'at', ARGV[4])
return 1
"""
)

# KEYS epoch examples examples_bytes; ARGV epoch max_bytes rows_kept step row...
# What is there of this step or a later one is replaced: it was sent before, or is of a branch that a restore left.
ADD_EXAMPLES = (
    CHECK_EPOCH
    + """
local examples, step = KEYS[2], tonumber(ARGV[4])
local bytes = tonumber(redis.call('get', KEYS[3]) or 0)
local function drop(entry)
  bytes = bytes - #entry[2][4]
  redis.call('xdel', examples, entry[1])
end
while true do
  local last = redis.call('xrevrange', examples, '+', '-', 'COUNT', 1)[1]
  if not last or tonumber(last[2][2]) < step then break end
  drop(last)
end
for i = 5, #ARGV do
  redis.call('xadd', examples, '*', 'step', step, 'row', ARGV[i])
  bytes = bytes + #ARGV[i]
end
while bytes > tonumber(ARGV[2]) or redis.call('xlen', examples) > tonumber(ARGV[3]) do
  local first = redis.call('xrange', examples, '-', '+', 'COUNT', 1)[1]
  if not first then  -- somebody else has taken entries out: nothing is left of these bytes
    bytes = 0
    break
  end
  drop(first)
end
redis.call('set', KEYS[3], bytes)
return redis.call('xlen', examples)
"""
)

# KEYS evaluation_jobs; ARGV policy_version lease_ms claimer heartbeat_prefix -> 1 if the job is ours now
# A job's value is "<claimed until> <claimer>"; a claim ends with its time, or with its claimer's heartbeat.
CLAIM_EVALUATION = (
    ALLOW_AT_MAXMEMORY
    + NOW
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
RELEASE_EVALUATION = (
    ALLOW_AT_MAXMEMORY
    + """
if redis.call('hexists', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('hset', KEYS[1], ARGV[1], '0 ')
return 1
"""
)

# KEYS members heartbeat; ARGV component status ttl_ms
HEARTBEAT = (
    ALLOW_AT_MAXMEMORY
    + """
redis.call('sadd', KEYS[1], ARGV[1])
redis.call('set', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
"""
)
