-- server: which Redis process has the sale, and under which one the sale was last
-- reconciled. The two differ after a failover or a restart, which may have lost writes.
--
-- KEYS    stock meta
-- ARGV    reconciled
-- RETURNS {1, process, mark}, or {-1}
--
-- mark is empty after a load. reconciled, unless empty, becomes the mark, if it is the
-- process that runs this.

local stock, meta = unpack(KEYS)
local reconciled = ARGV[1]

if redis.call('EXISTS', stock) == 0 then return { NOT_READY } end
local process = process()
local mark = redis.call('HGET', meta, 'server') or ''
if reconciled ~= '' and reconciled == process and mark ~= process then
  redis.call('HSET', meta, 'server', process)
  mark = process
end
return { 1, process, mark }
