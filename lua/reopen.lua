-- Ends a rebuild (R9): opens a partition that is closed under this rebuild's epoch and whose streams are empty.
--
-- KEYS  1 meta  2 orders  3 dead  4 dead_index
-- ARGV  1 '<epoch> <deployment>'  2 group  3 timeline of Postgres when this rebuild began ('' if unknown)
--
-- Returns {'fenced', reason} (this rebuild may not continue) | {'not_empty'} (drain again) | {'opened'}

local why, epoch = rebuild_fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
for i = 2, 3 do
  if redis.call('EXISTS', KEYS[i]) == 1 and redis.call('XLEN', KEYS[i]) > 0 then return { 'not_empty' } end
end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[2], '0', 'MKSTREAM')
redis.call('HSET', KEYS[1], 'status', 'open', 'seq', '0', 'timeline', epoch .. ' ' .. ARGV[3])
return { 'opened' }
