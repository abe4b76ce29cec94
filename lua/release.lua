-- release: a RESERVED batch shall not happen. It becomes VOID, and the units of those
-- HELD records that name it go back: these records disappear. Idempotent.
--
-- KEYS    stock buyers batches pending meta
-- ARGV    batch epoch decide orders
-- RETURNS the batch's state from now on, or -1
--
-- 4 VOID: released, found, or written because it is absent, unnamed and of this epoch
-- (epoch 0: of any); 2 CONFIRMED and 3 settled: left as it is; 5 absent, unnamed and
-- of another epoch: nothing is written; 0 absent, and decide is 0: left alone.

local stock, buyers, batches, pending, meta = unpack(KEYS)
local batch, epoch, decide, orders = unpack(ARGV, 1, 4)

if redis.call('EXISTS', stock) == 0 then return NOT_READY end

local value = redis.call('HGET', batches, batch)
if value then
  local state = STATE_OF[sub(value, 1, 1)]
  if state ~= RESERVED then
    touch(batches, batch, value)
    return state
  end
  local back, at = 0, 2
  while at <= #value do
    local user, _, next_at = next_order(value, at)
    local records, kept, pos = redis.call('HGET', buyers, user) or '', {}, 1
    while pos <= #records do
      local record, entry, of, after = next_record(records, pos)
      if record == HELD and of == batch then
        back = back + units_of(entry)
      else
        kept[#kept + 1] = sub(records, pos, after - 1)
      end
      pos = after
    end
    kept = table.concat(kept)
    if kept == '' then
      redis.call('HDEL', buyers, user)
    elseif kept ~= records then
      redis.call('HSET', buyers, user, kept)
    end
    at = next_at
  end
  move(stock, meta, 0 - back)
  redis.call('HSET', batches, batch, 'V' .. now_ms())
  redis.call('ZREM', pending, batch)
  return VOID
end

-- An id in pending without its batch would come up in every sweep.
redis.call('ZREM', pending, batch)
if decide == '0' then return ABSENT end
local current = redis.call('HGET', meta, 'epoch')
if named(buyers, orders, batch) then
  touch(meta, 'epoch', current)
  return SETTLED
end
if epoch ~= '0' and epoch ~= current then return OTHER_EPOCH end
redis.call('HSET', batches, batch, 'V' .. now_ms())
return VOID
