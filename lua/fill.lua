-- Fills one hash of a closed partition from the ledger (R9).
--
-- KEYS  1 meta  2 (given) the hash  3 (given, for request ids) the bucket of the same time that begin_rebuild.lua set
--       aside: these fields are removed from it
-- ARGV  1 '<epoch> <deployment>'  2 when the hash expires, ms since 1970 ('0': never)  3... field, value
--
-- Returns {'fenced', reason} (this rebuild may not continue) | {'ok'}

local why = rebuild_fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
-- The first write needs no memory (no hash has this field), because a full Redis refuses a script whose first write needs
-- memory. What a rebuild writes replaces what Redis held before.
redis.call('HDEL', KEYS[2], '')
if KEYS[3] then
  local fields = {}
  for i = 3, #ARGV, 2 do fields[#fields + 1] = ARGV[i] end
  redis.call('HDEL', KEYS[3], unpack(fields))
end
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
if ARGV[2] ~= '0' then redis.call('PEXPIREAT', KEYS[2], ARGV[2]) end
return { 'ok' }
