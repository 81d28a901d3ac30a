"""History in tiers: every step, minutes, hours. The layout is written down in shared/series.py."""

from shared.scripts.parts import ALLOW_AT_MAXMEMORY, CHECK_EPOCH, NOW

# Books of one kind (key `books`): "TIER:NUMBER" -> bytes of a block, "bytes:TIER" -> of all of them, "gone:TIER" -> 1
# once one was dropped, "rows" -> number of the next step's cell, "row_bytes" -> of the history stream.
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
  redis.call('hincrby', books, 'bytes:' .. tier, -tonumber(redis.call('hget', books, name) or 0))
  redis.call('hdel', books, name)
end

local function packed(tier, before, count, mean, low, high)
  if tier == 'steps' then return struct.pack('<d', mean) end
  if before ~= '' then
    local n, m, l, h = struct.unpack('<I4dff', before)
    if n > 0 then
      mean, count = m + (mean - m) * count / (n + count), n + count
      low, high = math.min(l, low), math.max(h, high)
    end
  end
  return struct.pack('<I4dff', count, mean, low, high)
end

-- Adds cells to one place of a tier; what is there is merged with them, but for steps, which are written once.
local function put(tier, number, cells, share, oldest)
  local size, width = SIZE[tier], WIDTH[tier]
  local block = math.floor(number / width)
  local at = (number - block * width) * size
  local name = tier .. ':' .. string.format('%.0f', block)
  local key, grown = books .. ':' .. name, 0
  local fresh = redis.call('hexists', books, name) == 0
  for first = 1, #cells, 5 * CHUNK do
    local last = math.min(#cells, first + 5 * CHUNK - 1)
    local fields, written = {}, {}
    for i = first, last, 5 do fields[#fields + 1] = cells[i] end
    local held = redis.call('hmget', key, unpack(fields))
    for j, field in ipairs(fields) do
      local i, old = first + 5 * (j - 1), held[j] or ''
      local head = string.sub(old, 1, at)
      if #head < at then head = head .. string.rep(NONE[tier], (at - #head) / size) end
      local cell = packed(tier, string.sub(old, at + 1, at + size), cells[i + 1], cells[i + 2], cells[i + 3],
        cells[i + 4])
      written[#written + 1] = field
      written[#written + 1] = head .. cell .. string.sub(old, at + size + 1)
      grown = grown + #written[#written] - #old
      if not held[j] then grown = grown + #field + OVERHEAD end
    end
    redis.call('hset', key, unpack(written))
  end
  redis.call('hincrby', books, name, grown)
  local held = redis.call('hincrby', books, 'bytes:' .. tier, grown)
  if not fresh and held <= share then return end
  local there = blocks(tier)
  for i = 1, #there - 1 do
    if held <= share and there[i] >= math.floor(oldest / width) then break end
    drop(tier, there[i])
    redis.call('hset', books, 'gone:' .. tier, 1)
    held = tonumber(redis.call('hget', books, 'bytes:' .. tier))
  end
end

-- Adds cells to the minute and the hour of a time; a clock that runs ahead must not make all that is kept look old.
local function roll(at, cells, minutes, hours, minutes_kept, hours_kept)
  at = math.min(at, now / 1000 + 60)
  local minute, hour = math.floor(at / 60), math.floor(at / 3600)
  put('minutes', minute, cells, minutes, minute - minutes_kept)
  put('hours', hour, cells, hours, hour - hours_kept)
end
"""
)

# KEYS epoch history books
# ARGV epoch row rows_kept row_bytes at cells steps_bytes minutes_bytes hours_bytes minutes_kept hours_kept
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
local cells = cmsgpack.unpack(ARGV[6])
put('steps', redis.call('hincrby', books, 'rows', 1) - 1, cells, tonumber(ARGV[7]), 0)
roll(tonumber(ARGV[5]), cells, tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]))
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
  local width = WIDTH[tier]
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
      redis.call('hincrby', books, name, -freed)
      redis.call('hincrby', books, 'bytes:' .. tier, -freed)
    end
  end
end

local function steps_kept()
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
cut('steps', rows)
redis.call('hset', books, 'rows', rows)

local minute, hour, whole = math.floor(at / 60), math.floor(at / 3600), math.huge
local cells = cmsgpack.unpack(ARGV[4])
cut('minutes', minute)
if #cells > 0 then put('minutes', minute, cells, whole, 0) end
if at > 0 and redis.call('exists', books .. ':minutes:' .. string.format('%.0f', hour)) == 0 then
  cut('hours', hour + 1)
  return taken
end
cut('hours', hour)
local held = redis.call('hgetall', books .. ':minutes:' .. string.format('%.0f', hour))
for i = 1, #held, 2 do
  for first = 1, #held[i + 1], SIZE.minutes do
    local count, mean, low, high = struct.unpack('<I4dff', held[i + 1], first)
    if count > 0 then put('hours', hour, {held[i], count, mean, low, high}, whole, 0) end
  end
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
roll(tonumber(ARGV[2]), cells, tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]))
return 1
"""
)
