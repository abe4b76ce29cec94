-- adopt: a batch that a check-back finds after Redis was rebuilt. It is written
-- CONFIRMED, and those of its orders that have no record get a HELD one; stock may
-- go below zero. Idempotent.
--
-- KEYS    stock buyers batches meta
-- ARGV    batch epoch orders
-- RETURNS the batch's state from now on, or -1, or -2
--
-- 2 CONFIRMED: adopted or found; 1 RESERVED: found, left as it is; 3 settled: absent,
-- and a buyer's record names it, left as it is; 4 VOID: found, or written because it
-- is absent, unnamed and of this epoch, so that Redis did not forget it; -2 during a
-- sold-out lease, if a user would get their first record.

local stock, buyers, batches, meta = unpack(KEYS)
local batch, epoch, orders = unpack(ARGV, 1, 3)

if redis.call('EXISTS', stock) == 0 then return NOT_READY end

local value = redis.call('HGET', batches, batch)
if value then
  touch(batches, batch, value)
  return STATE_OF[sub(value, 1, 1)]
end
local current = redis.call('HGET', meta, 'epoch')
if named(buyers, orders, batch) then
  touch(meta, 'epoch', current)
  return SETTLED
end
if epoch == current then
  redis.call('HSET', batches, batch, 'V' .. now_ms())
  return VOID
end
if unheard(buyers, meta, orders) then return LEASED end
move(stock, meta, hold(buyers, orders, batch))
redis.call('HSET', batches, batch, 'C' .. orders)
return CONFIRMED
