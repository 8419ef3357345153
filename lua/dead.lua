-- Reads dead entries of a partition: a page of them, the oldest first, or the one with a given dead key.
--
-- KEYS  1 meta  2 dead  3 dead_index
-- ARGV  1 '<epoch> <deployment>'  2 dead key (the key in dead_index), or '' for a page  3 first id ('-', or '('
--       and an id)  4 last id ('+', or an id)  5 most entries
--
-- Returns {'fenced', reason} | {'none'} (no entry has this dead key) | {'read', newest id of the stream ('' if it is
--         empty), then of each entry: its id, the number of elements of its fields, and these elements}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local first, last = ARGV[3], ARGV[4]
if ARGV[2] ~= '' then
  first = redis.call('HGET', KEYS[3], ARGV[2])
  if not first then return { 'none' } end
  last = first
end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local answer = { 'read', newest and newest[1] or '' }
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], first, last, 'COUNT', ARGV[5])) do
  answer[#answer + 1] = entry[1]
  answer[#answer + 1] = text(#entry[2])
  for _, part in ipairs(entry[2]) do answer[#answer + 1] = part end
end
return answer
