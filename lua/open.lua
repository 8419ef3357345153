-- Opens a new partition for the first time. The ledger has given this attempt an epoch of its own and still
-- calls the partition 'new'. Data that show otherwise belong to another deployment, or the ledger lost the commit that
-- opened the partition. The ledger never calls the epoch of a superseded attempt open.
--
-- KEYS  1 meta  2 orders  3 stock  4 supply  5 dead  6 catalogue  7 bought  8 dead_index
-- ARGV  1 '<epoch> <deployment>'  2 group  3 timeline of Postgres before this attempt ('' if unknown)
--
-- Returns {'fenced', 'replica'} (this Redis cannot be written) | {'opened'} | {'superseded'} (another attempt has
-- a later epoch) | {'other_deployment', the key that belongs to another deployment} | {'in_use'} (it was opened
-- before: it must be rebuilt)

local replid = instance()
if not replid then return { 'fenced', 'replica' } end
local epoch, deployment = string.match(ARGV[1], '^(%d+) (%S+)$')
local meta = redis.call('HMGET', KEYS[1], 'deployment', 'epoch')
if meta[1] then
  if meta[1] ~= deployment then return { 'other_deployment', KEYS[1] } end
  if tonumber(meta[2]) >= tonumber(epoch) then return { 'superseded' } end
  if in_use(KEYS) then return { 'in_use' } end
  -- An earlier attempt ended before it wrote to the ledger. This one opens what it left.
else
  for _, key in ipairs(KEYS) do
    if redis.call('EXISTS', key) == 1 then return { 'other_deployment', key } end
  end
  redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[2], '0', 'MKSTREAM')
end
local timeline = epoch .. ' ' .. ARGV[3]
redis.call('HSET', KEYS[1], 'deployment', deployment, 'epoch', epoch, 'status', 'open', 'replid', replid, 'seq', '0', 'timeline', timeline)
return { 'opened' }
