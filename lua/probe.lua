-- Asks whether a partition is open to the caller, and does nothing.
--
-- KEYS  1 meta
-- ARGV  1 '<epoch> <deployment>'
--
-- Returns {'fenced', reason} | {'ok'}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
return { 'ok' }
