-- confirm: a RESERVED batch is promised. Idempotent.
--
-- KEYS    stock buyers batches pending meta
-- ARGV    batch epoch decide orders
-- RETURNS the batch's state from now on, or -1
--
-- 2 CONFIRMED; 3 settled: absent, and a buyer's record names it; 4 VOID: found, or
-- written because it is absent, unnamed and of this epoch; 5 absent, unnamed and of
-- another epoch: unknown, nothing is written; 0 absent, and decide is 0: not looked
-- further, ask again with decide 1 and the orders.

local stock, buyers, batches, pending, meta = unpack(KEYS)
local batch, epoch, decide, orders = unpack(ARGV, 1, 4)

if redis.call('EXISTS', stock) == 0 then return NOT_READY end

local value = redis.call('HGET', batches, batch)
if value then
  local state = STATE_OF[sub(value, 1, 1)]
  if state == RESERVED then
    redis.call('HSET', batches, batch, 'C' .. sub(value, 2))
    redis.call('ZREM', pending, batch)
    return CONFIRMED
  end
  touch(batches, batch, value)
  return state
end

if decide == '0' then return ABSENT end
local current = redis.call('HGET', meta, 'epoch')
if named(buyers, orders, batch) then
  touch(meta, 'epoch', current)
  return SETTLED
end
if epoch ~= current then return OTHER_EPOCH end
redis.call('HSET', batches, batch, 'V' .. now_ms())
return VOID
