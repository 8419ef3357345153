-- Removes orders that the ledger holds: acknowledged and deleted, or the stream would keep them.
--
-- KEYS  1 meta  2 orders
-- ARGV  1 '<epoch> <deployment>'  2 group  3... entry ids
--
-- Returns {'fenced', reason} | {'ok', number removed}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local ids = { unpack(ARGV, 3) }
redis.pcall('XACK', KEYS[2], ARGV[2], unpack(ids))
return { 'ok', text(redis.call('XDEL', KEYS[2], unpack(ids))) }
