-- Removes one dead entry whose order is stored in the ledger. Gives nothing back.
--
-- KEYS  1 meta  2 dead  3 dead_index
-- ARGV  1 '<epoch> <deployment>'  2 dead id  3 dead key
--
-- Returns {'fenced', reason} | {'discarded'} | {'gone'} (another call removed it)

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local found = redis.call('XRANGE', KEYS[2], ARGV[2], ARGV[2])
-- Another entry may have that id by now: a rebuild empties the stream, and the clock may be set back.
if not found[1] or fields_of(found[1]).rid ~= ARGV[3] then return { 'gone' } end
-- Reading the index before the first write checks its type.
redis.call('HLEN', KEYS[3])
if redis.call('XDEL', KEYS[2], ARGV[2]) == 0 then return { 'gone' } end
redis.call('HDEL', KEYS[3], ARGV[3])
return { 'discarded' }
