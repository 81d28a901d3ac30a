"""History in tiers: every step, minutes, hours. The layout is written down in shared/series.py."""

from shared.scripts.parts import ALLOW_AT_MAXMEMORY, CHECK_EPOCH, NOW

# Books of one kind (key `books`): "TIER:NUMBER" -> bytes of a block, "bytes:TIER" -> of all of them, "gone:TIER" -> 1
# once one was dropped, "open:TIER" -> the minute or hour that is still open, "rows" -> steps so far, "row_bytes" -> of
# the history stream. What is open is kept apart, so that a step writes its own numbers and not a whole block of them:
# the hash "open:TIER" (its number is the field ''), and for steps the list "open:steps" of packed rows since the last
# whole block, each with its number before it.
# `cells` is flat: field, count, mean, low, high, and over again.
_BLOCKS = (
    NOW
    + """
local CHUNK, OVERHEAD, WIDTH = 1000, 96, {steps = 128, minutes = 60, hours = 24}
local SIZE = {steps = 8, minutes = 20, hours = 20}
local NONE = {steps = struct.pack('<d', 0/0), minutes = string.rep('\\0', 20), hours = string.rep('\\0', 20)}

local function blocks(tier)
  local found = {}
  for _, field in ipairs(redis.call('hkeys', books)) do
    local number = string.match(field, '^' .. tier .. ':(%d+)$')
    if number then found[#found + 1] = tonumber(number) end
  end
  table.sort(found)
  return found
end

local function drop(tier, number)
  local name = tier .. ':' .. string.format('%.0f', number)
  redis.call('del', books .. ':' .. name)
  redis.call('hincrby', books, 'bytes:' .. tier, 0 - tonumber(redis.call('hget', books, name) or 0))
  redis.call('hdel', books, name)
end

local function merged(before, cells, i)
  local count, mean, low, high = cells[i + 1], cells[i + 2], cells[i + 3], cells[i + 4]
  if before ~= '' then
    local n, m, l, h = struct.unpack('<I4dff', before)
    if n > 0 then
      mean, count = m + (mean - m) * count / (n + count), n + count
      low, high = math.min(l, low), math.max(h, high)
    end
  end
  return struct.pack('<I4dff', count, mean, low, high)
end

-- Notes that a block has grown, and drops the oldest ones where all of them take more than their share or are too old.
local function note(tier, block, grown, share, oldest)
  local name = tier .. ':' .. string.format('%.0f', block)
  local fresh = redis.call('hincrby', books, name, grown) == grown
  local held = redis.call('hincrby', books, 'bytes:' .. tier, grown)
  if not fresh and held <= share then return end
  local there = blocks(tier)
  for i = 1, #there - 1 do
    if held <= share and there[i] >= math.floor(oldest / WIDTH[tier]) then break end
    drop(tier, there[i])
    redis.call('hset', books, 'gone:' .. tier, 1)
    held = tonumber(redis.call('hget', books, 'bytes:' .. tier))
  end
end

-- Calls change(i, field, old) for every so manieth of `list` and writes what it returns, many at a time.
local function change(key, list, stride, changed)
  local grown = 0
  for first = 1, #list, stride * CHUNK do
    local last = math.min(#list, first + stride * CHUNK - 1)
    local fields, written = {}, {}
    for i = first, last, stride do fields[#fields + 1] = list[i] end
    local held = redis.call('hmget', key, unpack(fields))
    for j, field in ipairs(fields) do
      local old = held[j] or ''
      local new = changed(first + stride * (j - 1), field, old)
      written[#written + 1] = field
      written[#written + 1] = new
      grown = grown + #new - #old
      if not held[j] then grown = grown + #field + OVERHEAD end
    end
    redis.call('hset', key, unpack(written))
  end
  return grown
end

local function padded(old, tier, at)
  local head = string.sub(old, 1, at)
  if #head < at then head = head .. string.rep(NONE[tier], (at - #head) / SIZE[tier]) end
  return head
end

-- Adds cells to one minute or hour of a block, and to what is there.
local function put(tier, number, cells, share, oldest)
  local size, block = SIZE[tier], math.floor(number / WIDTH[tier])
  local at = (number - block * WIDTH[tier]) * size
  local key = books .. ':' .. tier .. ':' .. string.format('%.0f', block)
  local grown = change(key, cells, 5, function(i, _, old)
    local cell = merged(string.sub(old, at + 1, at + size), cells, i)
    return padded(old, tier, at) .. cell .. string.sub(old, at + size + 1)
  end)
  note(tier, block, grown, share, oldest)
end

-- Adds cells to the open minute or hour; a later one closes it, and an earlier one is in its block already.
local function roll(tier, number, cells, share, kept)
  local key, open = books .. ':open:' .. tier, tonumber(redis.call('hget', books, 'open:' .. tier) or -1)
  if number < open then return put(tier, number, cells, share, open - kept) end
  if number > open then
    local held, closed = redis.call('hgetall', key), {}
    for i = 1, #held, 2 do
      if held[i] ~= '' then
        local count, mean, low, high = struct.unpack('<I4dff', held[i + 1])
        for _, part in ipairs({held[i], count, mean, low, high}) do closed[#closed + 1] = part end
      end
    end
    redis.call('del', key)
    if #closed > 0 then put(tier, open, closed, share, number - kept) end
    redis.call('hset', books, 'open:' .. tier, string.format('%.0f', number))
    redis.call('hset', key, '', string.format('%.0f', number))
  end
  change(key, cells, 5, function(i, _, old) return merged(old, cells, i) end)
end

-- The same for the minute and the hour of a time; a clock that runs ahead must not make all that is kept look old.
local function roll_both(at, cells, minutes, hours, minutes_kept, hours_kept)
  at = math.min(at, now / 1000 + 60)
  roll('minutes', math.floor(at / 60), cells, tonumber(minutes), tonumber(minutes_kept))
  roll('hours', math.floor(at / 3600), cells, tonumber(hours), tonumber(hours_kept))
end

-- Adds a packed row to the open steps; a whole block of them is turned into one string for each series.
local function add_step(row, share)
  local key = books .. ':open:steps'
  local rows = redis.call('hincrby', books, 'rows', 1)
  local open = redis.call('rpush', key, struct.pack('<d', rows - 1) .. row)
  if rows % WIDTH.steps ~= 0 then return end
  local names, columns, first = {}, {}, (rows - open) % WIDTH.steps
  for i, packed in ipairs(redis.call('lrange', key, 0, -1)) do
    for name, value in pairs(cmsgpack.unpack(string.sub(packed, 9))) do
      if not columns[name] then
        columns[name] = {}
        names[#names + 1] = name
      end
      columns[name][i] = struct.pack('<d', value)
    end
  end
  table.sort(names)
  local block = rows / WIDTH.steps - 1
  local grown = change(books .. ':steps:' .. string.format('%.0f', block), names, 1, function(_, name, old)
    local parts = {padded(old, 'steps', first * SIZE.steps)}
    for i = 1, open do parts[#parts + 1] = columns[name][i] or NONE.steps end
    return table.concat(parts)
  end)
  redis.call('del', key)
  note('steps', block, grown, share, 0)
end
"""
)

# KEYS epoch history books
# ARGV epoch row rows_kept row_bytes at numbers steps_bytes minutes_bytes hours_bytes minutes_kept hours_kept
# (an epoch of 0 as in control.py) -> 1, or 0 where the newest row is this one (the answer was lost)
ADD_HISTORY = (
    """
if ARGV[1] ~= '0' then
"""
    + CHECK_EPOCH
    + """
end
local history, books = KEYS[2], KEYS[3]
"""
    + _BLOCKS
    + """
local newest = redis.call('xrevrange', history, '+', '-', 'COUNT', 1)[1]
if newest and newest[2][2] == ARGV[2] then return 0 end
redis.call('xadd', history, '*', 'row', ARGV[2])
local bytes, rows = redis.call('hincrby', books, 'row_bytes', #ARGV[2]), redis.call('xlen', history)
while rows > 1 and (bytes > tonumber(ARGV[4]) or rows > tonumber(ARGV[3])) do
  local oldest = redis.call('xrange', history, '-', '+', 'COUNT', 1)[1]
  redis.call('xdel', history, oldest[1])
  bytes, rows = redis.call('hincrby', books, 'row_bytes', -#oldest[2][2]), rows - 1
end
local cells = {}
for name, value in pairs(cmsgpack.unpack(ARGV[6])) do
  for _, part in ipairs({name, 1, value, value, value}) do cells[#cells + 1] = part end
end
add_step(ARGV[6], tonumber(ARGV[7]))
roll_both(tonumber(ARGV[5]), cells, ARGV[8], ARGV[9], ARGV[10], ARGV[11])
return 1
"""
)

# KEYS epoch history books; ARGV epoch step at cells -> rows taken back
# Takes back every row beyond a step, and the numbers of all time since `at`; `cells` are those of the minute of `at`
# that stay. The hour of `at` is made anew of its minutes.
REWIND = (
    ALLOW_AT_MAXMEMORY
    + CHECK_EPOCH
    + """
local history, books = KEYS[2], KEYS[3]
"""
    + _BLOCKS
    + """
local taken, at = 0, tonumber(ARGV[3])
while true do
  local newest = redis.call('xrevrange', history, '+', '-', 'COUNT', 1)[1]
  if not newest or tonumber(string.match(newest[2][2], '"step": (%d+)') or 0) <= tonumber(ARGV[2]) then break end
  redis.call('xdel', history, newest[1])
  redis.call('hincrby', books, 'row_bytes', -#newest[2][2])
  taken = taken + 1
end

local function cut(tier, number)
  local width, open = WIDTH[tier], tonumber(redis.call('hget', books, 'open:' .. tier) or -1)
  if open >= number then
    redis.call('del', books .. ':open:' .. tier)
    redis.call('hdel', books, 'open:' .. tier)
  end
  local last = math.floor(number / width)
  for _, block in ipairs(blocks(tier)) do
    if block > last or (block == last and number % width == 0) then
      drop(tier, block)
    elseif block == last then
      local name, freed = tier .. ':' .. string.format('%.0f', block), 0
      local key, kept = books .. ':' .. name, (number % width) * SIZE[tier]
      local held = redis.call('hgetall', key)
      for i = 1, #held, 2 do
        if #held[i + 1] > kept then
          freed = freed + #held[i + 1] - kept
          redis.call('hset', key, held[i], string.sub(held[i + 1], 1, kept))
        end
      end
      redis.call('hincrby', books, name, 0 - freed)
      redis.call('hincrby', books, 'bytes:' .. tier, 0 - freed)
    end
  end
end

-- How many steps are not taken back: of those that are open, else of the blocks.
local function steps_kept()
  local key, rows = books .. ':open:steps', tonumber(redis.call('hget', books, 'rows') or 0)
  local open = redis.call('lrange', key, 0, -1)
  for i = #open, 1, -1 do
    if (cmsgpack.unpack(string.sub(open[i], 9)).step or 0) <= tonumber(ARGV[2]) then
      redis.call('ltrim', key, 0, i - 1)
      return rows - #open + i
    end
  end
  redis.call('del', key)
  local there = blocks('steps')
  for i = #there, 1, -1 do
    local held = redis.call('hget', books .. ':steps:' .. string.format('%.0f', there[i]), 'step') or ''
    for j = math.floor(#held / 8), 1, -1 do
      local step = struct.unpack('<d', held, 8 * (j - 1) + 1)
      if step <= tonumber(ARGV[2]) then return there[i] * WIDTH.steps + j end
    end
  end
  return 0
end

local rows = steps_kept()
if redis.call('exists', books .. ':open:steps') == 0 then cut('steps', rows) end
redis.call('hset', books, 'rows', string.format('%.0f', rows))

local minute, hour, whole = math.floor(at / 60), math.floor(at / 3600), math.huge
local cells, of_hour = cmsgpack.unpack(ARGV[4]), {}
cut('minutes', minute)
local held = redis.call('hgetall', books .. ':minutes:' .. string.format('%.0f', hour))
for i = 1, #held, 2 do
  for first = 1, #held[i + 1], SIZE.minutes do
    local count, mean, low, high = struct.unpack('<I4dff', held[i + 1], first)
    if count > 0 then
      for _, part in ipairs({held[i], count, mean, low, high}) do of_hour[#of_hour + 1] = part end
    end
  end
end
cut('hours', hour)
for _, part in ipairs(cells) do of_hour[#of_hour + 1] = part end
if #cells > 0 then roll('minutes', minute, cells, whole, whole) end
for i = 1, #of_hour, 5 do
  roll('hours', hour, {of_hour[i], of_hour[i + 1], of_hour[i + 2], of_hour[i + 3], of_hour[i + 4]}, whole, whole)
end
return taken
"""
)

# KEYS books; ARGV slot at cells state minutes_bytes hours_bytes minutes_kept hours_kept
# -> 1, or 0 where this stretch of time has its sample already, from whomever
SAMPLE = (
    """
local books = KEYS[1]
"""
    + _BLOCKS
    + """
if tonumber(redis.call('hget', books, 'slot') or -1) >= tonumber(ARGV[1]) then return 0 end
redis.call('hset', books, 'slot', ARGV[1], 'state', ARGV[4])
local cells = cmsgpack.unpack(ARGV[3])
if #cells == 0 then return 1 end
roll_both(tonumber(ARGV[2]), cells, ARGV[5], ARGV[6], ARGV[7], ARGV[8])
return 1
"""
)
