-- Reads whose data Redis holds for a partition, and how far it is: before an epoch is spent on it, which only a
-- Redis that can be written is worth.
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
