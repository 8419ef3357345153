-- Removes entries whose orders a rebuild has stored or voided (R8).
--
-- KEYS  1 meta  2 (given) orders or dead
-- ARGV  1 '<epoch> <deployment>'  2... entry ids
--
-- Returns {'fenced', reason} (this rebuild may not continue) | {'ok', number removed}

local why = rebuild_fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
return { 'ok', text(redis.call('XDEL', KEYS[2], unpack(ARGV, 2))) }
