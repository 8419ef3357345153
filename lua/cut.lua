-- Reads everything that Redis holds of a partition, at one moment, for the audit (glossary: cut).
--
-- KEYS  1 meta  2 stock  3 supply  4 orders  5 dead  6 idempotency (base: buckets are <base>:<bucket>)
-- ARGV  1 '<epoch> <deployment>'  2 most entries to read, of orders and dead together  3 idempotency_window_ms
--
-- Returns {'fenced', reason} | {'too_many', entries} | {'ok', seq, then records of four elements:
--   product <product> <stock> <supply>
--   order <entry id> <product> <random>      in orders
--   dead <entry id> <product> <random>       in dead, with the id it had in orders
--   bucket <since ms> <ids> <waiting>        a bucket of request ids: when it begins, how many it holds, and how many
--                                            entries in the streams have one of them
--   no_bucket <since ms> 0 <waiting>}        an earlier bucket that does not exist: no order with a request id was
--                                            accepted in it, or it was written under a shorter idempotency window
--                                            and is no longer kept

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
for product, level in pairs(stock) do record('product', product, level, supply[product] or '0') end
for product, granted in pairs(supply) do
  if not stock[product] then record('product', product, '0', granted) end
end
-- The same buckets as those that reserve.lua reads.
local time, waiting = redis.call('TIME'), {}
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local width_ms, back, bucket = buckets_of(tonumber(ARGV[3]), now_ms)
local function count_waiting(order)
  local b = tonumber(string.match(order.w or '', '^%d+$'))
  if b then waiting[b] = (waiting[b] or 0) + 1 end
end
for _, entry in ipairs(redis.call('XRANGE', KEYS[4], '-', '+')) do
  local order = fields_of(entry)
  record('order', entry[1], order.p, order.r)
  count_waiting(order)
end
for _, entry in ipairs(redis.call('XRANGE', KEYS[5], '-', '+')) do
  local order = fields_of(entry)
  record('dead', order.id, order.p, order.r)
  count_waiting(order)
end
for b = bucket - back, bucket + 1 do
  local remembered = redis.call('HLEN', KEYS[6] .. ':' .. text(b))
  -- Every version keeps a bucket until the one after it has ended.
  local kind = remembered == 0 and b < bucket - 1 and 'no_bucket' or 'bucket'
  record(kind, text(b * width_ms), text(remembered), text(waiting[b] or 0))
end
return answer
