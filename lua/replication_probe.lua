-- Adds something to the replication stream of Redis, after everything that was accepted before: a WAIT for its position
-- waits for all of that. A full Redis does not refuse it, and the append-only file does not get it.
--
-- KEYS  1 meta
-- ARGV  1 '<epoch> <deployment>'
--
-- Returns {'fenced', reason} | {'ok'}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
if not string.find(redis.call('INFO', 'cluster'), 'cluster_enabled:1', 1, true) then
  redis.call('PUBLISH', KEYS[1] .. ':replication_probe', '')
  return { 'ok' }
end
-- The nodes of a cluster send messages over their own links and not in the replication stream, so this must be a write:
-- it sets an expiry in the year 9999 and removes it, which changes nothing.
redis.set_repl(redis.REPL_REPLICA)
redis.call('PEXPIREAT', KEYS[1], '253370764800000')
redis.call('PERSIST', KEYS[1])
return { 'ok' }
