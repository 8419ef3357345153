-- Reads the stock of products.
--
-- KEYS  1 meta  2 stock
-- ARGV  1 '<epoch> <deployment>'  2... products
--
-- Returns {'fenced', reason} | {'ok', stock ('' if Redis does not know the product), ...}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local answer = { 'ok' }
for i, units in ipairs(redis.call('HMGET', KEYS[2], unpack(ARGV, 2))) do answer[i + 1] = units or '' end
return answer
