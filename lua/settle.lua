-- Removes the entries of orders that the ledger holds: acknowledges and deletes them, because a stream keeps acknowledged
-- entries. The highest seq among them is kept as 'stored'. A ledger that no longer holds this order has lost commits.
--
-- KEYS  1 meta  2 orders
-- ARGV  1 '<epoch> <deployment>'  2 group  3... entry ids
--
-- Returns {'fenced', reason} | {'ok', number removed}

local why, _, epoch = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local ids = { unpack(ARGV, 3) }
-- '<epoch>-<seq>'. A value of another epoch does not count.
local of, before = string.match(redis.call('HGET', KEYS[1], 'stored') or '', '^(%d+)-(%d+)$')
before = of == epoch and tonumber(before) or 0
local stored = before
for _, id in ipairs(ids) do
  local of, seq = string.match(id, '^(%d+)-(%d+)$')
  if of == epoch then stored = math.max(stored, tonumber(seq)) end
end
redis.pcall('XACK', KEYS[2], ARGV[2], unpack(ids))
local removed = redis.call('XDEL', KEYS[2], unpack(ids))
-- Written after the writes that free memory, so that a full Redis does not refuse it.
if stored > before then redis.call('HSET', KEYS[1], 'stored', epoch .. '-' .. text(stored)) end
return { 'ok', text(removed) }
