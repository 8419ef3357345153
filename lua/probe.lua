-- Checks whether a partition is open to the caller, and changes nothing.
--
-- KEYS  1 meta
-- ARGV  1 '<epoch> <deployment>'
--
-- Returns {'fenced', reason} | {'ok', highest seq of this epoch that was settled ('0' for none),
--         timeline of Postgres when the partition was opened ('' if unknown)}

local why, _, epoch = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
local meta = redis.call('HMGET', KEYS[1], 'stored', 'timeline')
-- Each value begins with its epoch, because an older program does not reset them when it rebuilds a partition.
local function of_epoch(value, pattern)
  local of, rest = string.match(value or '', pattern)
  return of == epoch and rest or nil
end
return { 'ok', of_epoch(meta[1], '^(%d+)-(%d+)$') or '0', of_epoch(meta[2], '^(%d+) (.*)$') or '' }
