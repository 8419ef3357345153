-- Removes a consumer that has nothing pending: XGROUP DELCONSUMER would drop what it had.
--
-- KEYS  1 meta  2 orders
-- ARGV  1 '<epoch> <deployment>'  2 group  3 consumer
--
-- Returns {'fenced', reason} | {'removed'} | {'has_pending'}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local pending = redis.call('XPENDING', KEYS[2], ARGV[2], '-', '+', '1', ARGV[3])
if #pending > 0 then return { 'has_pending' } end
redis.call('XGROUP', 'DELCONSUMER', KEYS[2], ARGV[2], ARGV[3])
return { 'removed' }
