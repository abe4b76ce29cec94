-- settle: removes batches that the ledger has consumed. Idempotent.
--
-- KEYS    stock buyers batches pending meta
-- ARGV    mode (batch orders)*
-- RETURNS {1, settled}, settled one digit a batch, or {-1}, or {-2}
--
-- mode remove: a CONFIRMED or RESERVED batch is removed (1); for one that is absent
-- or VOID nothing is done (0): ask again in mode adopt. orders are empty.
-- mode adopt: orders are the ledger's active ones. The batch is removed whatever its
-- state, and an order that has no record gets a HELD one: Redis forgot it. Stock may
-- go below zero. -2 during a sold-out lease, if a user would get their first record: the
-- batches are owed still.

local stock, buyers, batches, pending, meta = unpack(KEYS)
local mode = ARGV[1]

if redis.call('EXISTS', stock) == 0 then return { NOT_READY } end

if mode == 'adopt' then
  for i = 3, #ARGV, 2 do
    if unheard(buyers, meta, ARGV[i]) then return { LEASED } end
  end
end

local settled, taken = {}, 0
for i = 2, #ARGV, 2 do
  local batch, orders = ARGV[i], ARGV[i + 1]
  local remove = mode == 'adopt'
  if not remove then
    local value = redis.call('HGET', batches, batch)
    remove = value and sub(value, 1, 1) ~= 'V'
  end
  if remove then
    taken = taken + hold(buyers, orders, batch)
    redis.call('HDEL', batches, batch)
    redis.call('ZREM', pending, batch)
  end
  settled[#settled + 1] = remove and 1 or 0
end
if taken > 0 then move(stock, meta, taken) end
return { 1, digits(settled) }
