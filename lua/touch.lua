-- Adds a mark to the replication stream of Redis, behind everything that was accepted before: a WAIT for the mark
-- waits for all of that. It writes nothing, so a full Redis does not refuse it.
--
-- KEYS  1 meta
-- ARGV  1 '<epoch> <deployment>'
--
-- Returns {'fenced', reason} | {'ok'}

local why = fence(KEYS[1], ARGV[1])
if why then return { 'fenced', why } end
redis.call('PUBLISH', KEYS[1] .. ':touch', '')
return { 'ok' }
