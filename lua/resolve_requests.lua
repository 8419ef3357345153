-- Resolves request ids that were remembered before a rebuild and that the ledger did not confirm: removes them from
-- the hash that begin_rebuild.lua set aside, and remembers those whose order is in neither store as lost. A repeated
-- request with one of these is answered with 'lost' (reserve.lua), and does not buy again.
--
-- KEYS  1 meta  2 lost  3 (given) the hash that was set aside
-- ARGV  1 '<epoch> <deployment>'  2 until when they are remembered, ms since 1970
--       3... field, '<epoch>-<seq> <random>' of a lost order or '' for any other
--
-- Returns {'fenced', reason} (this rebuild is over) | {'ok'}

local why = rebuild_fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
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
-- The first write frees memory, because a full Redis refuses any other first write.
redis.call('HDEL', KEYS[3], unpack(fields))
if #lost > 0 then
  redis.call('HSET', KEYS[2], unpack(lost))
  -- The hash expires with the youngest of them.
  if now_ms + ttl_ms < tonumber(ARGV[2]) then redis.call('PEXPIREAT', KEYS[2], ARGV[2]) end
end
return { 'ok' }
