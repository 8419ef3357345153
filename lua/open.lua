-- Opens a new partition for the first time. The ledger has given this attempt an epoch of its own and still
-- calls the partition 'new': nothing was sold from it, in this epoch or before, and whatever says otherwise
-- belongs to somebody else. An attempt that comes late opens an epoch that nobody will ever believe in.
--
-- KEYS  1 meta  2 orders  3 stock  4 supply  5 dead  6 catalogue  7 bought  8 dead_index
-- ARGV  1 deployment  2 epoch  3 group  4 timeline of Postgres before this attempt ('' if unknown)
--
-- Returns {'fenced', 'replica'} (this Redis cannot be written) | {'opened'} | {'late'} (another attempt is
-- further) | {'foreign', what stands in the way}

local replid = instance()
if not replid then return { 'fenced', 'replica' } end
local meta = redis.call('HMGET', KEYS[1], 'deployment', 'epoch', 'seq')
if meta[1] then
  if meta[1] ~= ARGV[1] then return { 'foreign', KEYS[1] } end
  if tonumber(meta[2]) >= tonumber(ARGV[2]) then return { 'late' } end
  -- An earlier attempt that did not live to tell the ledger.
  if meta[3] ~= '0' then return { 'foreign', KEYS[1] } end
else
  for _, key in ipairs(KEYS) do
    if redis.call('EXISTS', key) == 1 then return { 'foreign', key } end
  end
  redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[3], '0', 'MKSTREAM')
end
redis.call('HSET', KEYS[1], 'deployment', ARGV[1], 'epoch', ARGV[2], 'status', 'open', 'replid', replid, 'seq', '0', 'timeline', ARGV[2] .. ' ' .. ARGV[4])
return { 'opened' }
