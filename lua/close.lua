-- Closes an open partition. Nothing is sold from it until it is rebuilt.
--
-- KEYS  1 meta
-- ARGV  1 '<epoch> <deployment>'
--
-- Returns {'fenced', reason} (already closed or fenced) | {'closed'}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
redis.call('HSET', KEYS[1], 'status', 'closed')
return { 'closed' }
