"""Leases on prompts: given out under two credits, renewed, given back."""

from shared.scripts.parts import ALLOW_AT_MAXMEMORY, NOW

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

# KEYS cursor leases owners returned unapplied bytes latest clock desired phase parents drawing draining
# ARGV server want versions groups_per_version byte_budget least_bytes group_bytes lease_ms served_version lag [wish]
# [for_version]
# wish: the operator's that the lag follows, '+' before it; for_version: the newest version that it was resolved for;
# '' for either: whatever there is now.
# -> {reason, index...}: the reason is why fewer than `want` were given, '' if none.
LEASE = (
    """
local cursor, leases, owners, returned, unapplied = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
"""
    + NOW
    + """
local lease_ms = tonumber(ARGV[8])
local phase = redis.call('hget', KEYS[10], 'phase')
if phase == 'finished' or phase == 'failed' then return {phase} end
if redis.call('hexists', KEYS[13], ARGV[1]) == 1 then return {'draining'} end
if redis.call('hget', KEYS[9], 'paused') == '1' then
  return {'paused by the ' .. (redis.call('hget', KEYS[9], 'paused_by') or 'operator')}
end

local clock = KEYS[8]
"""
    + _TICK
    + """
for _, index in ipairs(redis.call('zrangebyscore', leases, '-inf', now)) do
  redis.call('zrem', leases, index)
  redis.call('zrem', KEYS[12], index)
  redis.call('hdel', owners, index)
  redis.call('zadd', returned, index, index)
end

local latest = redis.call('hmget', KEYS[7], 'policy_version', 'depth', 'credit', 'in_order', 'oldest')
local version, depth, credit = latest[1], tonumber(latest[2] or 0), tonumber(latest[3] or 0)
if not version then return {'no published version yet'} end
local wish, for_version = ARGV[11] or '', ARGV[12] or ''
local changed = wish ~= '' and wish ~= '+' .. (redis.call('hget', KEYS[9], 'lag') or '')
if changed or (for_version ~= '' and for_version ~= version) then return {'another lag is asked for'} end

-- How many publishes lie between the newest version and what is served, and what is to be served: as many as the lag
-- says, or as there are versions. A version that a restore published again ('=') is no publish of its own.
local versions, lag, oldest, steps, at = tonumber(ARGV[3]), tonumber(ARGV[10]), 0, 0, nil
if credit > 0 then versions = math.min(versions, credit) end
local readable, wanted = pcall(cjson.decode, redis.call('hget', KEYS[9], 'admission') or '')
if not readable or type(wanted) ~= 'table' then wanted = {} end
local staleness, most = tonumber(wanted.max_staleness), tonumber(wanted.max_bytes)
if staleness then versions = math.max(1, math.min(versions, staleness + 1)) end
while version and (steps <= lag or (not at and steps < lag + versions)) do
  local parent = redis.call('hget', KEYS[11], version)
  if version == ARGV[9] then at = steps end
  if not parent then break end
  oldest = steps
  if version == latest[5] then break end -- older ones are not all in the store
  version = string.match(parent, '^%d+')
  if string.sub(parent, -1) ~= '=' then steps = steps + 1 end
end
local behind = (at or lag + versions) - math.min(lag, oldest)
if behind < 0 then return {'weights are ahead'} end
-- Every version that the server is behind what it is to serve has used up a version's worth of credit.
if not at or behind >= versions then return {'weights are behind'} end

-- In order, so has the group that is being drawn for longest: the groups that are out do not suffice to publish so many
-- versions without it that it would come too late.
local drawing, used, reason = KEYS[12], behind, 'staleness credit'
while latest[4] == '1' do
  local longest = redis.call('zrange', drawing, 0, 0, 'withscores')
  if not longest[1] then break end
  if redis.call('zscore', leases, longest[1]) then
    local age = depth - tonumber(longest[2])
    if age > used then used, reason = age, 'a group in flight' end
    break
  end
  redis.call('zrem', drawing, longest[1]) -- its lease has ended
end

local leased = redis.call('zcard', leases)
local room = (versions - used) * tonumber(ARGV[4]) - leased - redis.call('scard', unapplied)
local budget = math.min(tonumber(ARGV[5]), math.max(most or math.huge, tonumber(ARGV[6])))
local free = budget - tonumber(redis.call('get', KEYS[6]) or 0)
local byte_room = math.floor(free / tonumber(ARGV[7])) - leased
if byte_room < room then room, reason = byte_room, 'byte credit' end
local n = math.min(tonumber(ARGV[2]), room)
if n >= tonumber(ARGV[2]) then reason = '' end

local given = {reason}
for _ = 1, n do
  local first = redis.call('zpopmin', returned)
  local index = first[1] or string.format('%.0f', redis.call('incr', cursor) - 1)
  redis.call('zadd', leases, now + lease_ms, index)
  redis.call('hset', owners, index, ARGV[1])
  redis.call('zadd', drawing, depth - behind, index)
  given[#given + 1] = index
end
return given
"""
)

# KEYS owners leases clock; ARGV server lease_ms -> number of leases renewed
RENEW = (
    ALLOW_AT_MAXMEMORY
    + NOW
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

# KEYS leases owners returned attempts drawing; ARGV server count_attempt index... -> attempts of each index so far
GIVE_BACK = (
    ALLOW_AT_MAXMEMORY
    + """
local attempts = {}
for i = 3, #ARGV do
  local index = ARGV[i]
  local n = 0
  if redis.call('hget', KEYS[2], index) == ARGV[1] then
    if ARGV[2] == '1' then n = redis.call('hincrby', KEYS[4], index, 1) end
    redis.call('zrem', KEYS[1], index)
    redis.call('zrem', KEYS[5], index)
    redis.call('hdel', KEYS[2], index)
    redis.call('zadd', KEYS[3], index, index)
  end
  attempts[#attempts + 1] = n
end
return attempts
"""
)
