-- Sets the supply of products to the totals that the ledger has granted, and adds the difference to their stock (R3). It
-- takes the total and not a difference, so any process may repeat the call at any time and a grant is added once.
--
-- KEYS  1 meta  2 stock  3 supply
-- ARGV  1 '<epoch> <deployment>', then for each product: product, supply
--
-- Returns {'fenced', reason} | {'ok', number of products that got units}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local products = {}
for i = 2, #ARGV, 2 do products[#products + 1] = ARGV[i] end
-- Every number is read and checked before the first write.
local stock, supply = redis.call('HMGET', KEYS[2], unpack(products)), redis.call('HMGET', KEYS[3], unpack(products))
local known = {}
for i, product in ipairs(products) do
  whole(stock[i] or '0', 'stock', product)
  known[product] = whole(supply[i] or '0', 'supply', product)
end
local raised = 0
for i = 2, #ARGV, 2 do
  local product, total = ARGV[i], tonumber(ARGV[i + 1])
  if total > known[product] then
    redis.call('HINCRBY', KEYS[2], product, text(total - known[product]))
    redis.call('HSET', KEYS[3], product, text(total))
    known[product] = total
    raised = raised + 1
  end
end
return { 'ok', text(raised) }
