-- Reads which deployment's data Redis holds for a partition, and its epoch and seq. Called before an epoch is used for
-- the partition. Redis refuses it where it cannot be written.
--
-- KEYS  1 meta
-- ARGV  none
--
-- Returns {'fenced', 'replica'} (this Redis cannot be written) | {'held', deployment, epoch, seq}
--       | {'none'} (it holds nothing of this partition)

if not instance() then return { 'fenced', 'replica' } end
local meta = redis.call('HMGET', KEYS[1], 'deployment', 'epoch', 'seq')
if not meta[1] then return { 'none' } end
return { 'held', meta[1], meta[2] or '0', meta[3] or '0' }
