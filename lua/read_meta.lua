-- Reads the deployment, epoch and seq of the partition's data in Redis. Called before an epoch is used for the partition.
-- A replica answers 'replica': no epoch is used for a Redis that cannot be written.
--
-- KEYS  1 meta
-- ARGV  none
--
-- Returns {'fenced', 'replica'} (this Redis is a replica) | {'meta', deployment, epoch, seq}
--       | {'none'} (Redis holds no meta of this partition)

if not instance() then return { 'fenced', 'replica' } end
local meta = redis.call('HMGET', KEYS[1], 'deployment', 'epoch', 'seq')
if not meta[1] then return { 'none' } end
return { 'meta', meta[1], meta[2] or '0', meta[3] or '0' }
