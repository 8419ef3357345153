-- Adds a message to the replication stream of Redis, after everything that was accepted before: a WAIT for its position
-- waits for all of that. It writes no key, so a full Redis does not refuse it.
--
-- KEYS  1 meta
-- ARGV  1 '<epoch> <deployment>'
--
-- Returns {'fenced', reason} | {'ok'}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
redis.call('PUBLISH', KEYS[1] .. ':replication_probe', '')
return { 'ok' }
