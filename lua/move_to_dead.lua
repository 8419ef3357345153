-- Moves one order that cannot be stored from orders to dead. Its unit stays taken until it is released.
--
-- KEYS  1 meta  2 orders  3 dead  4 dead_index
-- ARGV  1 '<epoch> <deployment>'  2 group  3 entry id  4 dead key: the reservation id, or the entry
--       id if it has none  5 reason  6 SQLSTATE ('' for none)
--
-- Returns {'fenced', reason} | {'moved', id in dead} | {'gone'} (no longer in orders)
--       | {'not_applied', the refusal of Redis}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local found = redis.call('XRANGE', KEYS[2], ARGV[3], ARGV[3])
if not found[1] then return { 'gone' } end
-- Reading the index before the first write checks its type.
redis.call('HLEN', KEYS[4])
local time = redis.call('TIME')
local at_ms = text(tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local entry = found[1][2]
for _, value in ipairs({ 'id', ARGV[3], 'rid', ARGV[4], 'reason', ARGV[5], 'sqlstate', ARGV[6], 'at', at_ms }) do
  entry[#entry + 1] = value
end
-- The first write, and the only one that Redis may refuse.
local dead_id = redis.pcall('XADD', KEYS[3], '*', unpack(entry))
if type(dead_id) == 'table' then return { 'not_applied', dead_id.err } end
redis.call('HSET', KEYS[4], ARGV[4], dead_id)
redis.pcall('XACK', KEYS[2], ARGV[2], ARGV[3])
redis.call('XDEL', KEYS[2], ARGV[3])
-- For the audit, which reads long streams in pages.
redis.pcall('HINCRBY', KEYS[1], 'moved', 1)
return { 'moved', dead_id }
