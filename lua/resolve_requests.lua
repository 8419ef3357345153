-- Resolves request ids that Redis remembered before a rebuild and that are not those of confirmed orders: removes them
-- from the hash that begin_rebuild.lua set aside. Those whose order is in neither store are remembered as lost:
-- reserve.lua answers a repeated request with 'lost_or_unknown' and takes no unit.
--
-- KEYS  1 meta  2 lost  3 (given) the hash that was set aside
-- ARGV  1 '<epoch> <deployment>'  2 until when lost ids are remembered, ms since 1970
--       3... field, and '<epoch>-<seq> <random>' of a lost order or '' for any other
--
-- Returns {'fenced', reason} (this rebuild may not continue) | {'ok'}

local why = rebuild_fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
-- Reading both keys before the first write checks their types.
redis.call('HLEN', KEYS[3])
redis.call('HLEN', KEYS[2])
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local ttl_ms = redis.call('PTTL', KEYS[2])
local fields, lost = {}, {}
for i = 3, #ARGV, 2 do
  fields[#fields + 1] = ARGV[i]
  if ARGV[i + 1] ~= '' then
    lost[#lost + 1] = ARGV[i]
    lost[#lost + 1] = ARGV[i + 1]
  end
end
-- The first write frees memory, because a full Redis refuses a script whose first write needs memory.
redis.call('HDEL', KEYS[3], unpack(fields))
if #lost > 0 then
  redis.call('HSET', KEYS[2], unpack(lost))
  -- The hash expires together with its youngest field.
  if now_ms + ttl_ms < tonumber(ARGV[2]) then redis.call('PEXPIREAT', KEYS[2], ARGV[2]) end
end
return { 'ok' }
