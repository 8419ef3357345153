-- Writes the terms of the sale of products. A product changes only if the given version is higher than the one that Redis
-- has, so any process may repeat the call at any time.
--
-- KEYS  1 meta  2 catalogue
-- ARGV  1 '<epoch> <deployment>', then for each product: product, version, status, per-user limit ('0' for none),
--       opens_at and closes_at in ms since 1970 ('0' for none)
--
-- Returns {'fenced', reason} | {'ok', number of products that changed}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local products = {}
for i = 2, #ARGV, 6 do products[#products + 1] = ARGV[i] end
-- The version of every product is read and checked before the first write.
local known, is_new = {}, false
for i, terms in ipairs(redis.call('HMGET', KEYS[2], unpack(products))) do
  local version = terms and tonumber(string.match(terms, '^(%d+)|'))
  if terms and not version then error('version of ' .. products[i] .. ' is not a whole number') end
  known[products[i]] = version or -1
  is_new = is_new or not terms
end
-- A stop must reach a full Redis as well: it may sell again a moment later. Redis refuses a script whose first write needs
-- memory, and this one needs none (the hash has no such field). Terms that replace others need hardly any.
if not is_new then redis.call('HDEL', KEYS[2], '') end
local changed = 0
for i = 2, #ARGV, 6 do
  local product, version = ARGV[i], ARGV[i + 1]
  if tonumber(version) > known[product] then
    local value = table.concat({ version, ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5] }, '|')
    redis.call('HSET', KEYS[2], product, value)
    known[product] = tonumber(version)
    changed = changed + 1
  end
end
return { 'ok', text(changed) }
