-- Gives the unit of one voided order back, once, even if it is called several times (R5, R6). Only the call that removes
-- the entry adds the unit.
--
-- KEYS  1 meta  2 stock  3 idempotency (base)  4 bought  5 orders  6 dead  7 dead_index
-- ARGV  1 '<epoch> <deployment>'  2 group  3 where the entry is: 'orders' or 'dead'  4 its id there
--       5 in 'dead': its dead key, since another entry may have that id now
--
-- Returns {'fenced', reason} | {'released', stock} | {'gone'} (another call gave it back)
--       | {'unrecognized'} (nothing done: this program did not write the entry)
--       | {'no_stock'} (nothing done: Redis has no stock of the product)

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local from, id = ARGV[3] == 'orders' and KEYS[5] or KEYS[6], ARGV[4]
local found = redis.call('XRANGE', from, id, id)
if not found[1] then return { 'gone' } end
local order = fields_of(found[1])
local original = order.id or id
if not (order.p and order.u and order.r) then return { 'unrecognized' } end
if from == KEYS[6] and not order.rid then return { 'unrecognized' } end
if from == KEYS[6] and order.rid ~= ARGV[5] then return { 'gone' } end
local known = redis.call('HGET', KEYS[2], order.p)
if not known then return { 'no_stock' } end

-- Every key is read before the first write, which checks its type, and every number that is changed is checked. Otherwise
-- the entry could be removed and its unit not given back.
whole(known, 'stock', order.p)
local bucket_key, request_field, record
local user_product_field = field_part(order.u) .. '/' .. field_part(order.p)
if order.q and order.w then
  bucket_key = KEYS[3] .. ':' .. order.w
  request_field = user_product_field .. '/' .. field_part(order.q)
  record = redis.call('HGET', bucket_key, request_field)
end
local bought = order.l and whole(redis.call('HGET', KEYS[4], user_product_field) or '0', 'bought', order.p) or 0
redis.call('XLEN', KEYS[5])
redis.call('HLEN', KEYS[7])

if redis.call('XDEL', from, id) == 0 then return { 'gone' } end
local stock = redis.call('HINCRBY', KEYS[2], order.p, 1)
-- For the audit, which reads long streams in pages.
redis.pcall('HINCRBY', KEYS[1], 'moved', 1)
if from == KEYS[5] then
  redis.pcall('XACK', KEYS[5], ARGV[2], id)
else
  redis.call('HDEL', KEYS[7], order.rid)
end
if bought > 1 then
  redis.call('HSET', KEYS[4], user_product_field, text(bought - 1))
elseif bought == 1 then
  redis.call('HDEL', KEYS[4], user_product_field)
end
-- The request id is forgotten only if it still belongs to this reservation: after the void, a repeated request may have
-- bought again with it.
local mine = original .. ' ' .. order.r .. ' '
if record and string.sub(record, 1, #mine) == mine then redis.call('HDEL', bucket_key, request_field) end
return { 'released', text(stock) }
