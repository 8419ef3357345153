-- Asks whose data Redis holds for a partition: before an epoch is spent on it, which only a Redis that can be
-- written is worth.
--
-- KEYS  1 meta
-- ARGV  none
--
-- Returns {'fenced', 'replica'} (this Redis cannot be written) | {'owner', deployment ('' for nobody)}

if not instance() then return { 'fenced', 'replica' } end
return { 'owner', redis.call('HGET', KEYS[1], 'deployment') or '' }
