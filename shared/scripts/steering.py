"""The controller's lease, and its acts: effect, memory and event in one step."""

# KEYS lease; ARGV who lease_ms -> 1 if the lease is theirs now
CLAIM_CONTROLLER = """
local holder = redis.call('get', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS lease controller desired events
# ARGV who state event events_kept wishes_expected (field value)... wishes_set (field value)...
# state: the controller's own; event: '' for none. Fields are those of `desired`, a missing one is ''.
# -> 1 done, 0 the lease is somebody else's, -1 a wish is not as expected: then nothing is done
ACT = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
local at, expected = 6, tonumber(ARGV[5])
for _ = 1, expected do
  if (redis.call('hget', KEYS[3], ARGV[at]) or '') ~= ARGV[at + 1] then return -1 end
  at = at + 2
end
local wanted = tonumber(ARGV[at])
for i = at + 1, at + 2 * wanted, 2 do redis.call('hset', KEYS[3], ARGV[i], ARGV[i + 1]) end
redis.call('set', KEYS[2], ARGV[2])
if ARGV[3] ~= '' then redis.call('xadd', KEYS[4], 'MAXLEN', '~', ARGV[4], '*', 'row', ARGV[3]) end
return 1
"""
