-- due: RESERVED batches whose deadline has passed, by Redis time, the oldest first.
--
-- KEYS    stock pending
-- ARGV    max
-- RETURNS {1, batch*}, or {-1}

local stock, pending = unpack(KEYS)
local max = ARGV[1]

if redis.call('EXISTS', stock) == 0 then return { NOT_READY } end
local reply = redis.call('ZRANGEBYSCORE', pending, '-inf', now_ms(), 'LIMIT', 0, max)
table.insert(reply, 1, 1)
return reply
