-- snapshot: a sale's counts at one instant, in O(1).
--
-- KEYS    stock buyers batches pending meta
-- ARGV
-- RETURNS {now_ms, stock, held, total, version, epoch, moves, buyers, batches, pending},
-- or {-1, now_ms}

local stock, buyers, batches, pending, meta = unpack(KEYS)

local left = tonumber(redis.call('GET', stock))
if not left then return { NOT_READY, now_ms() } end
local fields = redis.call('HMGET', meta, 'held', 'total', 'version', 'epoch', 'moves')
local reply = { now_ms(), left }
for i = 1, 5 do
  reply[i + 2] = tonumber(fields[i])
end
reply[8] = redis.call('HLEN', buyers)
reply[9] = redis.call('HLEN', batches)
reply[10] = redis.call('ZCARD', pending)
return reply
