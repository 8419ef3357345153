-- Reads the entry of a reservation whose order is still in a stream: in orders, or else in dead.
--
-- KEYS  1 meta  2 orders  3 dead  4 dead_index
-- ARGV  1 '<epoch> <deployment>'  2 the id that it has in orders  3 the reservation id  4 its random part
--       5 the same in hexadecimal, as earlier versions wrote it
--
-- Returns {'fenced', reason} | {'found', name, value, ...} (the fields of the entry)
--       | {'none', highest seq of this epoch that was settled ('0' for none)}

local why, _, epoch = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local function entry(stream, id)
  local found = redis.call('XRANGE', stream, id, id)
  -- The random part distinguishes this reservation from another one that may have that id.
  if not found[1] then return nil end
  local random = fields_of(found[1]).r
  if random == ARGV[4] or random == ARGV[5] then return found[1] end
end
local found = entry(KEYS[2], ARGV[2])
if not found then
  local dead_id = redis.call('HGET', KEYS[4], ARGV[3])
  found = dead_id and entry(KEYS[3], dead_id)
end
if found then return { 'found', unpack(found[2]) } end
-- '<epoch>-<seq>'. A value of another epoch does not count.
local of, stored = string.match(redis.call('HGET', KEYS[1], 'stored') or '', '^(%d+)-(%d+)$')
return { 'none', of == epoch and stored or '0' }
