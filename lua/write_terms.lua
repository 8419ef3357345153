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
local changed = 0
for i = 2, #ARGV, 6 do
  local product, version = ARGV[i], ARGV[i + 1]
  local known = redis.call('HGET', KEYS[2], product)
  if not known or tonumber(string.match(known, '^(%d+)|')) < tonumber(version) then
    local value = table.concat({ version, ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5] }, '|')
    redis.call('HSET', KEYS[2], product, value)
    changed = changed + 1
  end
end
return { 'ok', text(changed) }
