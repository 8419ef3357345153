-- Reads the deployment, epoch and seq of the partition's data in Redis, whether this instance wrote its meta, and whether
-- the partition was in use: it is then not opened, but rebuilt. Called before an epoch is used for the partition. A replica answers 'replica': no epoch is
-- used for a Redis that cannot be written.
--
-- KEYS  1 meta  2 orders  3 stock  4 supply  5 dead  6 catalogue  7 bought  8 dead_index
-- ARGV  none
--
-- Returns {'fenced', 'replica'} (this Redis is a replica)
--       | {'meta', deployment, epoch, seq, in use ('1' or '0'), of this instance ('1' or '0')}
--       | {'none'} (Redis holds no meta of this partition)

local replid = instance()
if not replid then return { 'fenced', 'replica' } end
local meta = redis.call('HMGET', KEYS[1], 'deployment', 'epoch', 'seq', 'replid')
if not meta[1] then return { 'none' } end
local of_this_instance = meta[4] == replid and '1' or '0'
return { 'meta', meta[1], meta[2] or '0', meta[3] or '0', in_use(KEYS) and '1' or '0', of_this_instance }
