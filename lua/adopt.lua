-- Adopts entries that were delivered and that no consumer has pending (glossary: adopt). XGROUP DELCONSUMER leaves such
-- entries behind, because it drops what its consumer had pending. Each call checks one page of the stream, up to the last
-- delivered entry. It never adopts an entry that a consumer has pending, or one that was not delivered yet.
--
-- KEYS  1 meta  2 orders
-- ARGV  1 '<epoch> <deployment>'  2 group  3 consumer  4 the last entry checked before ('' for the start)
--       5 most entries to check
--
-- Returns {'fenced', reason} | {'ok', last entry checked ('' if every delivered entry was checked), adopted id, ...}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
-- Without the stream, nothing was delivered.
if redis.call('EXISTS', KEYS[2]) == 0 then return { 'ok', '' } end
local delivered
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
  local info = {}
  for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
  if info.name == ARGV[2] then delivered = info['last-delivered-id'] end
end
-- Nor without the group.
if not delivered then return { 'ok', '' } end
local from = ARGV[4] == '' and '-' or '(' .. ARGV[4]
local page = redis.call('XRANGE', KEYS[2], from, delivered, 'COUNT', ARGV[5])
if #page == 0 then return { 'ok', '' } end
local pending = {}
local first, last = page[1][1], page[#page][1]
for _, row in ipairs(redis.call('XPENDING', KEYS[2], ARGV[2], first, last, ARGV[5])) do
  pending[row[1]] = true
end
local unowned = {}
for _, entry in ipairs(page) do
  local id = entry[1]
  -- Entries that are pending but no longer in the stream may have filled the reply above, so each entry that it did not
  -- name is checked by itself.
  if not pending[id] and #redis.call('XPENDING', KEYS[2], ARGV[2], id, id, '1') == 0 then
    unowned[#unowned + 1] = id
  end
end
local answer = { 'ok', #page < tonumber(ARGV[5]) and '' or last }
for _, id in ipairs(unowned) do
  -- Only its first delivery may be counted (R4).
  redis.call('XCLAIM', KEYS[2], ARGV[2], ARGV[3], '0', id, 'FORCE', 'JUSTID', 'RETRYCOUNT', '1')
  answer[#answer + 1] = id
end
return answer
