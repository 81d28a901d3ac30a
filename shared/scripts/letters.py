"""Dead letters: moved out of the stream within a bound, put back into it."""

from shared.scripts.parts import ALLOW_AT_MAXMEMORY, CHECK_EPOCH, OWN_ENTRY

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
    ALLOW_AT_MAXMEMORY
    + CHECK_EPOCH
    + OWN_ENTRY
    + """
local groups, letters, totals, buried, index, reason = KEYS[2], KEYS[4], KEYS[5], KEYS[6], ARGV[7], ARGV[8]
local last = redis.call('xrevrange', letters, '+', '-', 'COUNT', 1)[1]
if last then
  for i = 1, #last[2], 2 do
    if last[2][i] == 'entry_id' and last[2][i + 1] == ARGV[5] then return 0 end
  end
end
local entry = redis.call('xrange', groups, ARGV[5], ARGV[5])[1]
local known = entry and own(entry[2])
local freed = known and #entry[2][6] or 0
local latest = known and entry[2][8] or ''
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
  'payload', payload, 'latest', latest)
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
redis.call('xadd', KEYS[4], '*', 'group_id', field.group_id, 'prompt_index', index, 'payload', field.payload,
  'latest', field.latest or '')
redis.call('sadd', KEYS[5], index)
redis.call('incrby', KEYS[6], #field.payload)
redis.call('zrem', KEYS[8], index)
redis.call('hdel', buried, index)
redis.call('xdel', letters, ARGV[1])
redis.call('hincrby', totals, 'requeued:' .. field.reason, 1)
redis.call('hincrby', totals, 'kept', -tonumber(field.cost))
return 'requeued'
"""
