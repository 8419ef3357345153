-- Sets the supply of products to the totals that the ledger has granted, and adds the difference to their stock (R3). It
-- takes the total and not a difference, so any process may repeat the call at any time and a grant is added once.
--
-- KEYS  1 meta  2 stock  3 supply
-- ARGV  1 '<epoch> <deployment>', then for each product: product, supply
--
-- Returns {'fenced', reason} | {'ok', number of products that got units}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
-- Reading the key before the first write checks its type.
redis.call('HLEN', KEYS[2])
local raised = 0
for i = 2, #ARGV, 2 do
  local product, supply = ARGV[i], tonumber(ARGV[i + 1])
  local known = tonumber(redis.call('HGET', KEYS[3], product) or '0')
  if supply > known then
    redis.call('HINCRBY', KEYS[2], product, text(supply - known))
    redis.call('HSET', KEYS[3], product, text(supply))
    raised = raised + 1
  end
end
return { 'ok', text(raised) }
