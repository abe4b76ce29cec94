-- adjust: the total changes to that of a version. At or past it nothing is done.
-- Idempotent.
--
-- KEYS    stock meta
-- ARGV    total version
-- RETURNS 1: Redis is at that version or past it; 0: refused, the free stock does not
-- cover the cut; or -1

local stock, meta = unpack(KEYS)
local total, version = unpack(ARGV, 1, 2)

local left = tonumber(redis.call('GET', stock))
if not left then return NOT_READY end

local now = redis.call('HMGET', meta, 'total', 'version')
if tonumber(now[2]) >= tonumber(version) then
  touch(meta, 'version', now[2])
  return 1
end
local delta = total - now[1]
if delta < 0 and left + delta < 0 then return 0 end
redis.call('HSET', meta, 'total', total, 'version', version)
redis.call('INCRBY', stock, delta)
redis.call('HINCRBY', meta, 'moves', 1)
return 1
