-- Begins a rebuild (R7): closes a partition under the new epoch that the ledger has given to this rebuild, and removes
-- what is derived from the ledger. The streams stay; they are drained next (R8). The remembered request ids are set aside
-- as <idempotency>:<bucket>:old, until the rebuild has looked up each of them (resolve_requests.lua).
--
-- KEYS  1 meta  2 stock  3 supply  4 catalogue  5 bought  6 idempotency (base: buckets are <base>:<bucket>)
--       7 lost
-- ARGV  1 '<epoch> <deployment>'  2 idempotency_window_ms
--
-- Returns {'fenced', 'replica'} (this Redis cannot be written) | {'begun'} | {'superseded'} (another rebuild
-- has a later epoch) | {'other_deployment'} (Redis holds another deployment's data)

local replid = instance()
if not replid then return { 'fenced', 'replica' } end
local epoch, deployment = string.match(ARGV[1], '^(%d+) (%S+)$')
local meta = redis.call('HMGET', KEYS[1], 'deployment', 'epoch')
if meta[1] and meta[1] ~= deployment then return { 'other_deployment' } end
if meta[2] and tonumber(meta[2]) > tonumber(epoch) then return { 'superseded' } end
-- The first write frees memory, because a full Redis refuses any other first write.
redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
-- Closed before anything else: if Redis refuses one of the commands below, nothing is sold from what is left.
redis.call('HSET', KEYS[1], 'deployment', deployment, 'epoch', epoch, 'status', 'closed', 'replid', replid, 'seq', '0')
redis.call('HDEL', KEYS[1], 'stored', 'timeline', 'moved')
-- What is not a hash was written by another program. It holds no request ids, and the rebuild could not read it.
local function remove_unless_hash(key)
  local length = redis.pcall('HLEN', key)
  if type(length) == 'table' and string.find(length.err, 'WRONGTYPE', 1, true) then redis.call('UNLINK', key) end
end
remove_unless_hash(KEYS[7])
local _, back, bucket = buckets_of(tonumber(ARGV[2]), tonumber(redis.call('TIME')[1]) * 1000)
for b = bucket - back - 2, bucket + 1 do
  local kept = KEYS[6] .. ':' .. text(b)
  local old = kept .. ':old'
  remove_unless_hash(kept)
  remove_unless_hash(old)
  if b < bucket - back then
    redis.call('UNLINK', kept, old)
  elseif redis.call('EXISTS', old) == 1 then
    -- A rebuild that did not end has filled this bucket. This one fills it again.
    redis.call('UNLINK', kept)
  elseif redis.call('EXISTS', kept) == 1 then
    redis.call('RENAME', kept, old)
  end
end
return { 'begun' }
