-- Closes an open partition. Nothing is sold from it until it is rebuilt.
--
-- KEYS  1 meta
-- ARGV  1 '<epoch> <deployment>'
--
-- Returns {'fenced', reason} (already closed or fenced) | {'closed'}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
-- The first write needs no memory (the hash has no such field), because a full Redis refuses a script whose first write
-- needs memory. A partition must be closed there as well.
redis.call('HDEL', KEYS[1], '')
redis.call('HSET', KEYS[1], 'status', 'closed')
return { 'closed' }
