-- Finds which commands of the scripts the user of this program may not run (src/lifecycle/permissions.rs checks the
-- others). Redis checks each command of a script when the script reaches it, so a command that is not permitted would end
-- a script after its first writes. Changes nothing: each command is refused for its arguments, or finds no key.
--
-- KEYS  1 scratch
-- ARGV  none
--
-- Returns {'permitted'} | {'refused', names of the commands, separated by ', '}

local key = KEYS[1]
local calls = {
  { 'DEL', key },
  { 'EXISTS', key },
  { 'HDEL', key, 'field' },
  { 'HGET', key, 'field' },
  { 'HGETALL', key },
  { 'HINCRBY', key, 'field', 'no number' },
  { 'HLEN', key },
  { 'HMGET', key, 'field' },
  { 'HSET', key, 'field', 'value', 'field without a value' },
  { 'INFO', 'replication' },
  { 'PERSIST', key },
  { 'PEXPIREAT', key, 'no number' },
  { 'PTTL', key },
  { 'PUBLISH', key, '' },
  { 'RENAME', key, key },
  { 'TIME' },
  { 'UNLINK', key },
  { 'XACK', key, 'group', '0-1' },
  { 'XADD', key, 'NOMKSTREAM', '*', 'field', 'value' },
  { 'XCLAIM', key, 'group', 'consumer', '0', '0-1' },
  { 'XDEL', key, '0-1' },
  { 'XGROUP', 'CREATE', key, 'group', '$' },
  { 'XGROUP', 'DELCONSUMER', key, 'group', 'consumer' },
  { 'XINFO', 'GROUPS', key },
  { 'XLEN', key },
  { 'XPENDING', key, 'group' },
  { 'XRANGE', key, '-', '+' },
  { 'XREVRANGE', key, '+', '-' },
}
local refused = {}
for _, call in ipairs(calls) do
  local reply = redis.pcall(unpack(call))
  local message = type(reply) == 'table' and reply.err or ''
  -- As Redis up to 7.0, and newer ones, begin the message.
  if string.find(message, 'The user executing the script', 1, true) or string.find(message, 'ACL failure', 1, true) then
    local subcommand = (call[1] == 'XGROUP' or call[1] == 'XINFO') and ' ' .. call[2] or ''
    -- The command is permitted, and not for this key or channel.
    local on = string.find(message, ' key', 1, true) and ' on its keys'
      or string.find(message, ' channel', 1, true) and ' on its channels' or ''
    table.insert(refused, call[1] .. subcommand .. on)
  end
end
if #refused > 0 then return { 'refused', table.concat(refused, ', ') } end
return { 'permitted' }
