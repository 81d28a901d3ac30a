"""What a Redis that lost its data, or fell back into its past, has to learn again."""

from shared.scripts.parts import ALLOW_AT_MAXMEMORY, CHECK_EPOCH, OWN_ENTRY

# A claim is "<index> <cause> <id>", and stays until the learner has written down what it says.
_CLAIM = """
local t = redis.call('time')
local function claim(list, index, cause)
  redis.call('rpush', list, string.format('%.0f %s %s.%s-%.0f', index, cause, t[1], t[2], index))
end
"""

# KEYS claims unapplied owners leases returned drawing; ARGV server index... -> how many of them are lost
# What a server knows to be acknowledged and Redis does not: the learner is told, and a lease that came back with the
# past is given back.
CLAIM_LOST = (
    ALLOW_AT_MAXMEMORY
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
      redis.call('zrem', KEYS[6], index)
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
    ALLOW_AT_MAXMEMORY
    + CHECK_EPOCH
    + """
redis.call('ltrim', KEYS[2], ARGV[2], -1)
for i = 3, #ARGV do redis.call('zrem', KEYS[3], ARGV[i]) end
return 1
"""
)

# KEYS epoch groups cursor returned unapplied bytes owners appended claims
# ARGV epoch named in_hand index*in_hand first last first last ... (finished intervals)
# -> the epoch that Redis had
# Rebuilds what admission counts from what is really there: the ledger, the stream, the leases, and the groups that the
# learner has in hand. An index below the cursor that is in none of these and that nobody was to draw again was
# appended once, and its entry was taken out of the stream by somebody else: the learner hears of it as of a claim.
# The learner of the highest epoch takes a Redis over that has lost its data.
RESTORE = (
    ALLOW_AT_MAXMEMORY
    + OWN_ENTRY
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

# KEYS epoch parents; ARGV epoch version parent version parent ...: what a Redis that lost its data has to know again
RESTORE_PARENTS = (
    ALLOW_AT_MAXMEMORY
    + CHECK_EPOCH
    + """
for i = 2, #ARGV, 2 do redis.call('hset', KEYS[2], ARGV[i], ARGV[i + 1]) end
return 1
"""
)
