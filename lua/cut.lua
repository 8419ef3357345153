-- A cut of a partition's log for the audit: everything that Redis knows, at one moment.
--
-- KEYS  1 meta  2 stock  3 supply  4 orders  5 dead  6 claims (base: windows are <base>:<window>)
-- ARGV  1 '<epoch> <deployment>'  2 most entries to read  3 claims_window_ms
--
-- Returns {'fenced', reason} | {'too_many', entries} | {'ok', seq, then records of four words:
--   p <product> <stock> <supply>
--   o <entry id> <product> <random>      in orders
--   d <entry id> <product> <random>      in dead, with the id it had in orders
--   c <since ms> <claims> <waiting>}     claims made since, and the entries in the streams that have one

local why, seq = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local entries = redis.call('XLEN', KEYS[4]) + redis.call('XLEN', KEYS[5])
if entries > tonumber(ARGV[2]) then return { 'too_many', text(entries) } end

local answer, n = { 'ok', seq }, 2
local function record(kind, a, b, c)
  answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = kind, a or '', b or '', c or ''
  n = n + 4
end
local function table_of(key)
  local flat, all = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do all[flat[i]] = flat[i + 1] end
  return all
end
local stock, supply = table_of(KEYS[2]), table_of(KEYS[3])
for product, level in pairs(stock) do record('p', product, level, supply[product] or '0') end
for product, granted in pairs(supply) do
  if not stock[product] then record('p', product, '0', granted) end
end
-- The windows that reserve.lua looks into.
local time, window_ms = redis.call('TIME'), tonumber(ARGV[3])
local window = math.floor((tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)) / window_ms)
local claims, waiting = 0, 0
for w = window - 1, window + 1 do claims = claims + redis.call('HLEN', KEYS[6] .. ':' .. text(w)) end
local function has_claim(order) return order.w and tonumber(order.w) and tonumber(order.w) >= window - 1 end
for _, entry in ipairs(redis.call('XRANGE', KEYS[4], '-', '+')) do
  local order = fields_of(entry)
  record('o', entry[1], order.p, order.r)
  if has_claim(order) then waiting = waiting + 1 end
end
for _, entry in ipairs(redis.call('XRANGE', KEYS[5], '-', '+')) do
  local order = fields_of(entry)
  record('d', order.id, order.p, order.r)
  if has_claim(order) then waiting = waiting + 1 end
end
record('c', text((window - 1) * window_ms), text(claims), text(waiting))
return answer
