-- The fence (R1). Every script that runs on an open partition begins with fence(), and the scripts of a rebuild after
-- begin_rebuild.lua begin with rebuild_fence(). So no script changes a partition after Redis lost data or was
-- replaced by another instance.
--
-- caller is '<epoch> <deployment>', as the caller knows them. fence(meta_key, caller) returns
--   reason            The script must return {'fenced', reason} and do nothing. The reason is one of
--                     'replica'     this Redis is a replica, even a writable one (replica-read-only no)
--                     'missing'     there is no meta: Redis was emptied, or never had this partition
--                     'deployment'  the data belong to another deployment
--                     'replid'      Redis restarted, was promoted, or was restored from a backup
--                     'epoch'       the caller and Redis have different epochs
--                     'closed'      the partition is closed until it is rebuilt
--   nil, seq, epoch   The partition is open. seq is the number of accepts in this epoch. Both are text.
--
-- instance() returns the replid of this Redis, or nil if it is a replica.
local function instance()
  local info = redis.call('INFO', 'replication')
  if string.match(info, 'role:(%a+)') ~= 'master' then return nil end
  return string.match(info, 'master_replid:(%x+)')
end

local function fence(meta_key, caller)
  local replid = instance()
  if not replid then return 'replica' end
  local meta = redis.call('HMGET', meta_key, 'replid', 'epoch', 'status', 'seq', 'deployment')
  if not (meta[1] and meta[2] and meta[3] and meta[4] and meta[5]) then return 'missing' end
  local epoch, deployment = string.match(caller, '^(%d+) (%S+)$')
  if meta[5] ~= deployment then return 'deployment' end
  if meta[1] ~= replid then return 'replid' end
  if meta[2] ~= epoch then return 'epoch' end
  if meta[3] ~= 'open' then return 'closed' end
  return nil, meta[4], epoch
end

-- As fence, for a rebuild: the partition must be closed under this rebuild's epoch. Returns reason, or nil and epoch. An
-- open partition is 'epoch' too: the epoch of this rebuild has ended with the opening.
local function rebuild_fence(meta_key, caller)
  local replid = instance()
  if not replid then return 'replica' end
  local meta = redis.call('HMGET', meta_key, 'replid', 'epoch', 'status', 'deployment')
  if not (meta[1] and meta[2] and meta[3] and meta[4]) then return 'missing' end
  local epoch, deployment = string.match(caller, '^(%d+) (%S+)$')
  if meta[4] ~= deployment then return 'deployment' end
  if meta[1] ~= replid then return 'replid' end
  if meta[2] ~= epoch or meta[3] ~= 'closed' then return 'epoch' end
  return nil, epoch
end

-- Lua prints large numbers as floats; every number that leaves a script goes through here. The format is '%d' and not
-- '%.0f', because it costs half as much; a fraction, which no script writes, is cut off.
local function text(number) return string.format('%d', number) end

-- A part of the name of a hash's field, which joins ids by '/': '%' and '/' in it are escaped, so that different ids
-- never give the same field. src/domain/field.rs does the same.
local function field_part(id) return (string.gsub(id, '[%%/]', { ['%'] = '%25', ['/'] = '%2F' })) end

-- A number that a script replaces, or from which it computes what it writes. It must be stored exactly as text() writes
-- it, and Lua must count it exactly. Otherwise the script fails: a wrong value would be overwritten by one that looks
-- right, or HINCRBY would be refused in the middle of a script. Every script calls this before its first write.
local function whole(value, name, product)
  local number = tonumber(value)
  if number and text(number) == value and math.abs(number) <= 9007199254740992 then return number end
  error(name .. (product and ' of ' .. product or '') .. ' is not a whole number')
end

-- The last digits of a whole number to base 64, with the characters from '0' to 'o' as digits (src/domain/base64.rs does
-- the same).
local function base64(number, width)
  local digits = {}
  for i = width, 1, -1 do digits[i], number = 48 + number % 64, math.floor(number / 64) end
  return string.char(unpack(digits))
end

-- Request ids are remembered in hashes <base>:<bucket>, by the time of the accept. A bucket is as wide as the
-- idempotency window and at most 12 hours, so that buckets written under another idempotency window are found
-- (src/domain/idempotency_window.rs does the same).
-- Returns the width in ms, how many earlier buckets this window reaches back, and the bucket of now.
local function buckets_of(idempotency_window_ms, now_ms)
  local width_ms = math.min(idempotency_window_ms, 43200000)
  return width_ms, math.ceil(idempotency_window_ms / width_ms), math.floor(now_ms / width_ms)
end

-- Whether more than a first opening has been done with a partition that has a meta: a product was written, an order
-- accepted, or a rebuild begun. The ledger had the partition open before. keys are those of open.lua.
local function in_use(keys)
  local meta = redis.call('HMGET', keys[1], 'status', 'seq')
  if meta[1] ~= 'open' or meta[2] ~= '0' then return true end
  return redis.call('EXISTS', unpack(keys, 3)) > 0 or redis.call('XLEN', keys[2]) > 0
end

-- A stream entry's fields as a table. In place of 'o' it has the parts of the order, in the order of their names below; a
-- part that is empty or missing is left out (src/stream/entry.rs does the same with each entry that reserve.lua writes).
local function fields_of(entry)
  local fields = {}
  for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
  if fields.o then
    local pattern = '^([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) ([^ ]*) *$'
    local parts = { string.match(fields.o .. '      ', pattern) }
    for i, name in ipairs({ 'r', 'p', 'u', 'l', 'w', 'q', 'c' }) do
      if parts[i] ~= '' then fields[name] = parts[i] end
    end
  end
  return fields
end
