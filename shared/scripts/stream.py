"""Groups in the stream: appended under a lease, released from the credits, deleted once they are trained on."""

from shared.scripts.parts import ALLOW_AT_MAXMEMORY, CHECK_EPOCH, NOW, OWN_ENTRY

# KEYS groups leases owners unapplied bytes appended attempts acknowledged latest drawing
# ARGV server index group_id field payload known
# -> {what, count}: what is 'stored', 'duplicate' (this index is in the stream already), 'lease lost', or 'data lost':
# Redis remembers fewer appends of this server than the server does (known), and nothing was done.
# count is how many appends of this server Redis remembers now. The entry says which version was the latest: what a
# group's tokens are behind by now came in flight, what comes on top comes in the queue.
APPEND = """
local index = ARGV[2]
local count = tonumber(redis.call('hget', KEYS[8], ARGV[1]) or 0)
if count < tonumber(ARGV[6]) then return {'data lost', count} end
if redis.call('sismember', KEYS[4], index) == 1 then return {'duplicate', count} end
if redis.call('hget', KEYS[3], index) ~= ARGV[1] then return {'lease lost', count} end
local latest = redis.call('hget', KEYS[9], 'policy_version') or ''
redis.call('xadd', KEYS[1], '*', 'group_id', ARGV[3], 'prompt_index', index, ARGV[4], ARGV[5], 'latest', latest)
redis.call('zrem', KEYS[2], index)
redis.call('zrem', KEYS[10], index)
redis.call('hdel', KEYS[3], index)
redis.call('hdel', KEYS[7], index)
redis.call('sadd', KEYS[4], index)
redis.call('incrby', KEYS[5], #ARGV[5])
redis.call('incr', KEYS[6])
return {'stored', redis.call('hincrby', KEYS[8], ARGV[1], 1)}
"""

# KEYS groups; ARGV consumer_group -> milliseconds since the oldest entry that was never read was appended; -1: none
OLDEST = (
    NOW
    + """
if redis.call('exists', KEYS[1]) == 0 then return -1 end
for _, group in ipairs(redis.call('xinfo', 'groups', KEYS[1])) do
  local read
  for i = 1, #group, 2 do
    if group[i] == 'name' and group[i + 1] ~= ARGV[1] then read = false end
    if group[i] == 'last-delivered-id' and read ~= false then read = group[i + 1] end
  end
  if read then
    local entry = redis.call('xrange', KEYS[1], '(' .. read, '+', 'COUNT', 1)[1]
    return entry and math.max(0, now - tonumber(string.match(entry[1], '^%d+'))) or -1
  end
end
return -1
"""
)

# KEYS epoch unapplied; ARGV epoch index...
RELEASE = (
    ALLOW_AT_MAXMEMORY
    + CHECK_EPOCH
    + """
for i = 2, #ARGV do redis.call('srem', KEYS[2], ARGV[i]) end
return #ARGV - 1
"""
)

# KEYS epoch groups bytes; ARGV epoch consumer_group entry_id... -> {bytes freed, entries that were not there any more}
DELETE = (
    ALLOW_AT_MAXMEMORY
    + CHECK_EPOCH
    + OWN_ENTRY
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
