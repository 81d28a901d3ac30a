"""What operators want, who and since when, each with its event."""

from shared.scripts.parts import ALLOW_AT_MAXMEMORY

# KEYS desired events; ARGV name text by at event events_kept [instead_of]
# -> 1 changed, 0 wanted already by the same, -1 another wish than instead_of is there
WISH = (
    ALLOW_AT_MAXMEMORY
    + """
local name, now = ARGV[1], redis.call('hget', KEYS[1], ARGV[1]) or ''
if now == ARGV[2] and (now == '' or redis.call('hget', KEYS[1], name .. '_by') == ARGV[3]) then return 0 end
if ARGV[7] and now ~= ARGV[7] then return -1 end
redis.call('hset', KEYS[1], name, ARGV[2], name .. '_by', ARGV[3], name .. '_at', ARGV[4])
if ARGV[5] ~= '' then redis.call('xadd', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'row', ARGV[5]) end
return 1
"""
)

# KEYS members draining events; ARGV component server event events_kept -> 1 off the list, 0 it was not on it
REMOVE = (
    ALLOW_AT_MAXMEMORY
    + """
redis.call('hdel', KEYS[2], ARGV[2])
if redis.call('srem', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('xadd', KEYS[3], 'MAXLEN', '~', ARGV[4], '*', 'row', ARGV[3])
return 1
"""
)

# KEYS hash events; ARGV field value event events_kept most replace -> 1 changed, 0 as before, -1 the hash is full
# An empty value takes the field away; one that is there stays as it is unless `replace` is 1.
MARK = (
    ALLOW_AT_MAXMEMORY
    + """
local there, wanted = redis.call('hexists', KEYS[1], ARGV[1]) == 1, ARGV[2] ~= ''
if wanted == there and (not there or ARGV[6] ~= '1') then return 0 end
if not there and redis.call('hlen', KEYS[1]) >= tonumber(ARGV[5]) then return -1 end
if wanted then redis.call('hset', KEYS[1], ARGV[1], ARGV[2]) else redis.call('hdel', KEYS[1], ARGV[1]) end
if ARGV[3] ~= '' then redis.call('xadd', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'row', ARGV[3]) end
return 1
"""
)
