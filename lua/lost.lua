-- Concludes with request ids that were remembered before a rebuild and that the ledger did not confirm: takes
-- them out of the hash that seize.lua set aside, and remembers those whose order is in neither store as lost.
-- A repeated request with one of these is answered so (reserve.lua), and does not buy again.
--
-- KEYS  1 meta  2 old claims of a bucket  3 lost
-- ARGV  1 '<epoch> <deployment>'  2 until when they are remembered, ms since 1970
--       3... field, '<epoch>-<seq> <random>' of a lost order or '' for any other
--
-- Returns {'fenced', reason} (this rebuild is over) | {'ok'}

local why = under_repair(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
redis.call('HLEN', KEYS[2])
redis.call('HLEN', KEYS[3])
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local ttl_ms = redis.call('PTTL', KEYS[3])
local fields, lost = {}, {}
for i = 3, #ARGV, 2 do
  fields[#fields + 1] = ARGV[i]
  if ARGV[i + 1] ~= '' then
    lost[#lost + 1] = ARGV[i]
    lost[#lost + 1] = ARGV[i + 1]
  end
end
-- First what frees memory: a full Redis refuses any other first write.
redis.call('HDEL', KEYS[2], unpack(fields))
if #lost > 0 then
  redis.call('HSET', KEYS[3], unpack(lost))
  -- The hash lives as long as the youngest of them.
  if now_ms + ttl_ms < tonumber(ARGV[2]) then redis.call('PEXPIREAT', KEYS[3], ARGV[2]) end
end
return { 'ok' }
