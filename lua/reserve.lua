-- Decides a batch of requests of one partition: takes units and writes their orders, in one atomic step.
--
-- KEYS  1 meta  2 stock  3 catalogue  4 idempotency (base: buckets are <base>:<bucket>)  5 bought  6 orders
--       7 lost
-- ARGV  1 '<epoch> <deployment>'  2 idempotency_window_ms  3 backlog_max_entries
--       then for each request: product, user, request id ('' for none), random part,
--       traceparent ('' for none), '1' if no id has a character to escape, else '0'
--
-- Returns {'fenced', reason}, nothing done, or {'ok', answers}, a text with one line for each request:
--   accepted <seq> <remaining> <reserved_at_ms>
--   duplicate <epoch>-<seq> <random> <reserved_at_ms, to base 64> <remaining>
--   lost_or_unknown <epoch>-<seq> <random>   this request id's order was accepted before, and lost
--   sold_out | limit_reached <limit> | sale_not_open <opens_at_ms> | sale_closed <closes_at_ms> | sale_closed
--   sale_stopped | product_not_found | backlog_full <entries removed from the stream in this epoch>
--   not_applied <refusal of Redis>     for this request and all after it: nothing was done for them
--
-- A remembered request id holds '<epoch>-<seq> <random> <reserved_at_ms, to base 64>' (src/domain/claim.rs). If another
-- program wrote a control character there or into a value of lost, only the answer to this request is unreadable: its
-- line has a '?' in place of each one.
-- The script cannot fail between two writes of a request. Before the first write, every key is read, which checks its type,
-- and every number that is changed is checked. The first write is an XADD. Redis may refuse only this write (out of
-- memory, id too small), and the refusal is caught.

local why, seq_text, epoch = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local seq = whole(seq_text, 'seq')
-- A reservation id holds 36 bits of it. When they are used up, the partition is closed, and its rebuild begins a new epoch.
local seq_max = 68719476735
if seq >= seq_max then
  redis.call('HSET', KEYS[1], 'status', 'closed')
  return { 'fenced', 'closed' }
end
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local backlog_max = tonumber(ARGV[3])
local width_ms, back, bucket = buckets_of(tonumber(ARGV[2]), now_ms)
local now_text, bucket_text = text(now_ms), text(bucket)
local bucket_key = KEYS[4] .. ':' .. bucket_text

-- 1. The requests.
-- A product's id never has a character to escape.
local function user_product_field(r) return (r.is_plain and r.user or field_part(r.user)) .. '/' .. r.product end
local requests, products, seen, request_fields = {}, {}, {}, {}
for i = 4, #ARGV, 6 do
  local r = {
    product = ARGV[i], user = ARGV[i + 1], request = ARGV[i + 2], random = ARGV[i + 3], trace = ARGV[i + 4],
  }
  r.is_plain = ARGV[i + 5] == '1'
  if r.request ~= '' then
    r.request_field = user_product_field(r) .. '/' .. (r.is_plain and r.request or field_part(r.request))
    request_fields[#request_fields + 1] = r.request_field
  end
  if not seen[r.product] then
    seen[r.product] = true
    products[#products + 1] = r.product
  end
  requests[#requests + 1] = r
end

-- 2. Every key is read before the first write.
local stock, catalogue, sales = {}, {}, {}
local stock_now = redis.call('HMGET', KEYS[2], unpack(products))
local catalogue_now = redis.call('HMGET', KEYS[3], unpack(products))
for i, product in ipairs(products) do
  stock[product] = whole(stock_now[i] or '0', 'stock', product)
  if catalogue_now[i] then
    -- Many products have the same terms: each text is parsed once.
    local terms = string.match(catalogue_now[i], '^%d+|(.*)$') or ''
    if not sales[terms] then
      local status, limit, opens, closes = string.match(terms, '^([%a_]+)|(%d+)|(%d+)|(%d+)$')
      sales[terms] = {
        status = status, limit = tonumber(limit), opens = tonumber(opens), closes = tonumber(closes),
      }
    end
    catalogue[product] = sales[terms]
  end
end
local function one_line(value) return (string.gsub(value, '%c', '?')) end
local records, lost, kept_until, now_base64 = {}, {}, {}, nil
if #request_fields > 0 then
  now_base64 = base64(now_ms, 7)
  -- The next bucket is read as well: the clock may have been set back since it was written.
  for b = bucket - back, bucket + 1 do
    local key, until_ms = KEYS[4] .. ':' .. text(b), (b + back + 1) * width_ms
    local ttl_ms = redis.call('PTTL', key)
    local exists = ttl_ms ~= -2
    if exists then
      local found = redis.call('HMGET', key, unpack(request_fields))
      for i = 1, #request_fields do
        if found[i] then records[request_fields[i]] = one_line(found[i]) end
      end
    end
    -- The bucket is new, or was written under a shorter idempotency window. (The clock moves on between two commands.)
    if (exists or b == bucket) and until_ms - now_ms - ttl_ms > 1000 then kept_until[key] = until_ms end
  end
  if redis.call('EXISTS', KEYS[7]) == 1 then
    local found = redis.call('HMGET', KEYS[7], unpack(request_fields))
    for i, field in ipairs(request_fields) do lost[field] = found[i] and one_line(found[i]) end
  end
end
local bought, bought_fields, limited = {}, {}, {}
for _, r in ipairs(requests) do
  local product = catalogue[r.product]
  if product and product.limit > 0 then
    r.bought_field = user_product_field(r)
    bought_fields[#bought_fields + 1] = r.bought_field
    limited[#limited + 1] = r.product
  end
end
if #bought_fields > 0 then
  local now = redis.call('HMGET', KEYS[5], unpack(bought_fields))
  for i, field in ipairs(bought_fields) do bought[field] = whole(now[i] or '0', 'bought', limited[i]) end
end
local backlog = redis.call('XLEN', KEYS[6])

-- 3. The requests are decided in order. The check for a duplicate comes first, so that the buyer of the last unit gets
-- the same answer when the request is repeated.
local function refusal(r)
  local product = catalogue[r.product]
  if not product then return 'product_not_found' end
  if product.status == 'stopped' then return 'sale_stopped' end
  if product.status ~= 'on_sale' then return 'sale_closed' end
  if backlog >= backlog_max then return 'backlog_full ' .. text(seq - backlog) end
  if product.opens > now_ms then return 'sale_not_open ' .. text(product.opens) end
  if product.closes > 0 and product.closes <= now_ms then return 'sale_closed ' .. text(product.closes) end
  if r.bought_field and bought[r.bought_field] >= product.limit then return 'limit_reached ' .. text(product.limit) end
  if stock[r.product] <= 0 then return 'sold_out' end
  return nil
end

-- The entry has format 3 (src/stream/entry.rs): fields_of() takes 'o' apart.
local function add_order(r, id)
  local order = r.random .. ' ' .. r.product .. ' ' .. r.user
  if r.request_field or r.bought_field or r.trace ~= '' then
    order = order .. ' ' .. (r.bought_field and '1' or '') .. ' ' .. (r.request_field and bucket_text or '') .. ' ' .. r.request
  end
  if r.trace ~= '' then order = order .. ' ' .. r.trace end
  return redis.pcall('XADD', KEYS[6], id, 'v', '3', 't', now_text, 'o', order)
end

local answers, new_stock, new_bought, new_records, failed = {}, {}, {}, {}, nil
for _, r in ipairs(requests) do
  local answer
  local record = r.request_field and records[r.request_field]
  if failed then
    answer = 'not_applied ' .. failed
  elseif record then
    answer = 'duplicate ' .. record .. ' ' .. text(stock[r.product])
  elseif r.request_field and lost[r.request_field] then
    answer = 'lost_or_unknown ' .. lost[r.request_field]
  else
    answer = refusal(r)
  end
  if not answer then
    local next_seq = text(seq + 1)
    local id = epoch .. '-' .. next_seq
    local added = seq < seq_max and add_order(r, id) or { err = 'the partition has used the last seq of its epoch' }
    if type(added) == 'table' and added.err then
      failed = added.err
      answer = 'not_applied ' .. failed
    else
      seq, backlog = seq + 1, backlog + 1
      stock[r.product] = stock[r.product] - 1
      new_stock[r.product] = text(stock[r.product])
      if r.bought_field then
        bought[r.bought_field] = bought[r.bought_field] + 1
        new_bought[r.bought_field] = text(bought[r.bought_field])
      end
      if r.request_field then
        records[r.request_field] = id .. ' ' .. r.random .. ' ' .. now_base64
        new_records[r.request_field] = records[r.request_field]
      end
      answer = 'accepted ' .. next_seq .. ' ' .. new_stock[r.product] .. ' ' .. now_text
    end
  end
  answers[#answers + 1] = answer
end

-- 4. What the accepted ones changed.
-- One command writes all fields of a hash: each further command costs Redis and its append-only file more than a field.
local function write(key, values)
  local fields = {}
  for field, value in pairs(values) do
    fields[#fields + 1] = field
    fields[#fields + 1] = value
  end
  if #fields > 0 then redis.call('HSET', key, unpack(fields)) end
end
if next(new_stock) then
  redis.call('HSET', KEYS[1], 'seq', text(seq))
  write(KEYS[2], new_stock)
  write(KEYS[5], new_bought)
  write(bucket_key, new_records)
end
-- Redis may refuse this, for example when it is full. Then the next call does it.
for key, until_ms in pairs(kept_until) do redis.pcall('PEXPIREAT', key, text(until_ms)) end
return { 'ok', table.concat(answers, '\n') }
