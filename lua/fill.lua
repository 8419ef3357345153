-- Fills one hash of a closed partition from the ledger (R9).
--
-- KEYS  1 meta  2 (given) the hash  3 (given, for request ids) the old bucket of that time, which
--       loses these fields
-- ARGV  1 '<epoch> <deployment>'  2 when the hash expires, ms since 1970 (0: never)  3... field, value
--
-- Returns {'fenced', reason} (this rebuild is over) | {'ok'}

local why = rebuild_fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
-- The first write needs no memory (no hash has this field), because a full Redis refuses any other first write. What a
-- rebuild writes replaces what Redis held before.
redis.call('HDEL', KEYS[2], '')
if KEYS[3] then
  local fields = {}
  for i = 3, #ARGV, 2 do fields[#fields + 1] = ARGV[i] end
  redis.call('HDEL', KEYS[3], unpack(fields))
end
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
if ARGV[2] ~= '0' then redis.call('PEXPIREAT', KEYS[2], ARGV[2]) end
return { 'ok' }
