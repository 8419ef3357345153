-- Asks whether a partition is open to the caller, and does nothing.
--
-- KEYS  1 meta
-- ARGV  1 '<epoch> <deployment>'
--
-- Returns {'fenced', reason} | {'ok', highest seq of this epoch that was settled as stored (0 for none),
--         timeline of Postgres when it was opened ('' if unknown)}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local meta = redis.call('HMGET', KEYS[1], 'stored', 'timeline')
return { 'ok', meta[1] or '0', meta[2] or '' }
