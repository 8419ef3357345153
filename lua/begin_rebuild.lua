-- Begins a rebuild (R7): closes a partition under the new epoch that the ledger has given to this rebuild, and removes
-- what is derived from the ledger. The streams stay; they are drained next (R8). The remembered request ids are set aside
-- as <idempotency>:<bucket>:old, until the rebuild has looked up each of them (resolve_requests.lua).
--
-- KEYS  1 meta  2 stock  3 supply  4 catalogue  5 bought  6 idempotency (base: buckets are <base>:<bucket>)
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
local _, back, bucket = buckets_of(tonumber(ARGV[2]), tonumber(redis.call('TIME')[1]) * 1000)
for b = bucket - back - 2, bucket + 1 do
  local kept = KEYS[6] .. ':' .. text(b)
  local old = kept .. ':old'
  if b < bucket - back then
    redis.call('UNLINK', kept, old)
  elseif redis.call('EXISTS', old) == 1 then
    -- A rebuild that did not end has filled this bucket. This one fills it again.
    redis.call('UNLINK', kept)
  elseif redis.call('EXISTS', kept) == 1 then
    redis.call('RENAME', kept, old)
  end
end
redis.call('HSET', KEYS[1], 'deployment', deployment, 'epoch', epoch, 'status', 'closed', 'replid', replid, 'seq', '0')
redis.call('HDEL', KEYS[1], 'stored', 'timeline')
return { 'begun' }
