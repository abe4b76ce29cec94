-- restore: an order was cancelled. Its record goes from HELD to RETURNED, and its
-- units go back. Absent: a RETURNED record is written, so that a late adoption takes
-- nothing. Idempotent.
--
-- KEYS    stock buyers meta
-- ARGV    batch user entry
-- RETURNS 1: this call gave the units back; 0: there was nothing to give back; or -1

local stock, buyers, meta = unpack(KEYS)
local batch, user, entry = unpack(ARGV, 1, 3)

if redis.call('EXISTS', stock) == 0 then return NOT_READY end

local records = redis.call('HGET', buyers, user) or ''
local first, last, state, recorded = find(records, order_of(entry))
if not first then
  redis.call('HSET', buyers, user, records .. RETURNED .. entry .. batch)
  move(stock, meta, 0)
  return 0
end
if state == RETURNED then return 0 end
redis.call('HSET', buyers, user, sub(records, 1, first - 1) .. RETURNED .. sub(records, first + 1))
move(stock, meta, 0 - units_of(recorded))
return 1
