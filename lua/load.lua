-- load: fills a sale whose stock key is absent, in steps under one epoch. Until the
-- last step writes the stock key, every other script finds the sale not ready.
--
-- KEYS    stock buyers batches pending meta
-- ARGV    step epoch number (batch data)*
-- RETURNS 1: done; 0: the stock key is there; 2: another epoch is loading, or was
-- loaded since; 3: steps are missing (a failover lost them). All but 1 change nothing
--
-- step begin: wipes what is left of older epochs, and marks this one as loading.
-- step orders: number is 1 more than the step's before; data is rows of the ledger,
-- each: length of user (1 byte), user, record; batch is empty. An order already here
-- is not added again, and takes the ledger's RETURNED.
-- step batches: number the same; data is the batch's orders. It becomes CONFIRMED, and
-- those of its orders that are not here yet get a HELD record.
-- step finish: number is that of the last step; the one batch is the total, its data
-- the version. Writes the stock key.

local stock, buyers, batches, pending, meta = unpack(KEYS)
local step, epoch, number = unpack(ARGV, 1, 3)

local DONE, LOADED, OTHER, MISSING = 1, 0, 2, 3

if redis.call('EXISTS', stock) == 1 then return LOADED end

local now = redis.call('HMGET', meta, 'epoch', 'loading', 'steps', 'held')
if step == 'begin' then
  -- Not the same epoch either: a late copy of its own begin must not wipe a load
  -- under way. A loader that fails starts again under the next epoch.
  local seen = math.max(tonumber(now[1] or 0), tonumber(now[2] or 0))
  if tonumber(epoch) <= seen then return OTHER end
  redis.call('UNLINK', buyers, batches, pending, meta)
  redis.call('HSET', meta, 'loading', epoch, 'steps', 0, 'held', 0)
  return DONE
end

if not now[2] then return MISSING end
if now[2] ~= epoch then return OTHER end

if step == 'finish' then
  if now[3] ~= number then return MISSING end
  local total, version = ARGV[4], ARGV[5]
  redis.call('HDEL', meta, 'loading', 'steps')
  -- Counted from another start under each epoch: a recount that began before the load must
  -- not take the records for those it has read.
  redis.call('HSET', meta, 'epoch', epoch, 'total', total, 'version', version, 'moves', epoch .. '000000000')
  redis.call('SET', stock, total - now[4])
  return DONE
end

-- The steps count up one by one: after a failover that lost some of them, the next
-- is refused, or their orders would be missing and their units sold twice.
if now[3] + 1 ~= tonumber(number) then return MISSING end

-- rows writes rows of the ledger, and returns the units they hold.
local function rows(data)
  local held, at = 0, 1
  while at <= #data do
    local from = at + 1 + byte(data, at)
    local user = sub(data, at + 1, from - 1)
    local state, entry, _, after = next_record(data, from)
    local records = redis.call('HGET', buyers, user) or ''
    local first, _, was, recorded = find(records, order_of(entry))
    if not first then
      redis.call('HSET', buyers, user, records .. sub(data, from, after - 1))
      if state == HELD then held = held + units_of(entry) end
    elseif was == HELD and state == RETURNED then
      redis.call('HSET', buyers, user, sub(records, 1, first - 1) .. RETURNED .. sub(records, first + 1))
      held = held - units_of(recorded)
    end
    at = after
  end
  return held
end

local held = 0
for i = 4, #ARGV, 2 do
  local batch, data = ARGV[i], ARGV[i + 1]
  if step == 'orders' then
    held = held + rows(data)
  else
    held = held + hold(buyers, data, batch)
    redis.call('HSET', batches, batch, 'C' .. data)
  end
end
redis.call('HINCRBY', meta, 'held', held)
redis.call('HSET', meta, 'steps', number)
return DONE
