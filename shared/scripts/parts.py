"""Fragments of Lua that scripts of several subjects share."""

NOW = """
local t = redis.call('time')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""

# An entry as APPEND writes it, perhaps without `latest`; whatever else is in the stream was put there by somebody else.
OWN_ENTRY = """
local function own(fields)
  local whole = #fields == 6 or (#fields == 8 and fields[7] == 'latest')
  return whole and fields[1] == 'group_id' and fields[3] == 'prompt_index'
end
"""

ALLOW_AT_MAXMEMORY = "redis.call('del', KEYS[1] .. ':never')\n"

# A higher epoch is another learner's. None, or a lower one, is a past that Redis has fallen back into.
CHECK_EPOCH = """
local epoch = tonumber(redis.call('get', KEYS[1]) or 0)
if epoch > tonumber(ARGV[1]) then return redis.error_reply('FENCED') end
if epoch < tonumber(ARGV[1]) then return redis.error_reply('DATALOSS ' .. string.format('%.0f', epoch)) end
"""
