-- Opens a new partition for the first time. The caller holds the partition's row in the ledger, still
-- 'new': nothing can have been sold yet, and whatever says otherwise belongs to somebody else.
--
-- KEYS  1 meta  2 orders  3 stock  4 supply  5 dead  6 catalogue  7 bought  8 buried
-- ARGV  1 deployment  2 epoch  3 group
--
-- Returns {'opened'} | {'foreign', what stands in the way}

local meta = redis.call('HMGET', KEYS[1], 'deployment', 'epoch', 'seq')
if meta[1] and (meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2] or meta[3] ~= '0') then
  return { 'foreign', KEYS[1] }
end
if not meta[1] then
  for _, key in ipairs(KEYS) do
    if redis.call('EXISTS', key) == 1 then return { 'foreign', key } end
  end
  redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[3], '0', 'MKSTREAM')
end
redis.call('HSET', KEYS[1], 'deployment', ARGV[1], 'epoch', ARGV[2], 'status', 'open', 'replid', replid_now(), 'seq', '0')
return { 'opened' }
