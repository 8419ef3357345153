-- Reads everything that Redis holds of a partition, for the audit (glossary: cut). The first call reads all of it at one
-- moment, except entries beyond the first page. Further calls read those. From then on an entry may leave the streams, and
-- then its order is in the ledger, or 'moved' has changed.
--
-- KEYS  1 meta  2 stock  3 supply  4 orders  5 dead  6 idempotency (base: buckets are <base>:<bucket>)
-- ARGV  1 '<epoch> <deployment>'  2 most entries to read, of orders and dead together  3 idempotency_window_ms
--       4 where the page begins, as the call before returned it; '' in the first call
--
-- Returns {'fenced', reason} | {'ok', seq, moved, next, then records of four elements}. 'moved' counts the entries of this
-- epoch that were moved to dead or released; 'next' is where the next page begins ('' after the last page). The records:
--   product <product> <stock> <supply>
--   bucket <since ms> <ids> 0                a bucket of request ids: when it begins, and how many it holds
--   no_bucket <since ms> 0 0                 an earlier bucket that does not exist: no order with a request id was
--                                            accepted in it, or it was written under a shorter idempotency window
--                                            and is no longer kept
--   order <entry id> <product> <random>      in orders
--   dead <entry id> <product> <random>       in dead, with the id it had in orders
--   waiting <since ms> <entries> 0           how many entries of this page have a request id of this bucket

local why, seq, epoch = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local answer, n = { 'ok', seq, redis.call('HGET', KEYS[1], 'moved') or '0', '' }, 4
local function record(kind, a, b, c)
  answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = kind, a or '', b or '', c or ''
  n = n + 4
end
local function table_of(key)
  local flat, all = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do all[flat[i]] = flat[i + 1] end
  return all
end
-- The same buckets as those that reserve.lua reads.
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local width_ms, back, bucket = buckets_of(tonumber(ARGV[3]), now_ms)

-- The stream, the first id and the last id of the page.
local stream, first, last = string.match(ARGV[4], '^(%a+) (%S+) (%S+)$')
if not stream then
  stream, first, last = 'orders', '-', '+'
  local stock, supply = table_of(KEYS[2]), table_of(KEYS[3])
  for product, level in pairs(stock) do record('product', product, level, supply[product] or '0') end
  for product, granted in pairs(supply) do
    if not stock[product] then record('product', product, '0', granted) end
  end
  for b = bucket - back, bucket + 1 do
    local remembered = redis.call('HLEN', KEYS[6] .. ':' .. text(b))
    -- Every version keeps a bucket until the one after it has ended.
    local kind = remembered == 0 and b < bucket - 1 and 'no_bucket' or 'bucket'
    record(kind, text(b * width_ms), text(remembered), '0')
  end
end

local left, waiting = tonumber(ARGV[2]), {}
-- Returns whether the stream may have further entries; then the answer has the place of the next page.
local function read(key, kind, from, to)
  local page = redis.call('XRANGE', key, from, to, 'COUNT', text(left))
  for _, entry in ipairs(page) do
    local order = fields_of(entry)
    record(kind, kind == 'dead' and order.id or entry[1], order.p, order.r)
    local b = tonumber(string.match(order.w or '', '^%d+$'))
    if b then waiting[b] = (waiting[b] or 0) + 1 end
  end
  if #page < left then
    left = left - #page
    return false
  end
  -- Orders that are accepted after the cut are not part of it.
  local until_id = to == '+' and kind == 'order' and epoch .. '-' .. seq or to
  answer[4] = (kind == 'dead' and 'dead' or 'orders') .. ' (' .. page[#page][1] .. ' ' .. until_id
  return true
end
if stream == 'dead' then
  read(KEYS[5], 'dead', first, last)
elseif not read(KEYS[4], 'order', first, last) then
  read(KEYS[5], 'dead', '-', '+')
end
for b, entries in pairs(waiting) do record('waiting', text(b * width_ms), text(entries), '0') end
return answer
