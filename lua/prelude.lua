-- prelude: what the scripts share. lua.go puts it in front of each of them.
--
-- A buyer's value is their records, one after the other:
--   record = state entry batch
--   state  = 'H' (HELD: it holds its units) or 'R' (RETURNED: it gave them back)
--   entry  = units (2 bytes) order (8 bytes) key (a length byte, whose low 7 bits
--            count, and that many bytes; the high bit tells Go how to read them)
--   batch  = 8 bytes
-- A batch's value is 'R' (RESERVED) or 'C' (CONFIRMED) and its orders, or 'V' (VOID)
-- and the Redis time in ms at which it was voided:
--   orders = for each: length of user (1 byte), user, entry
-- Numbers are big-endian. Ids have 63 bits and a Lua number holds 53: ids stay
-- strings of 8 bytes, which are only ever compared.

local NOT_READY = -1 -- the stock key is absent: nothing was changed
local LEASED = -2 -- a sold-out lease is held: nothing was changed, ask again when it has lapsed
local ABSENT, RESERVED, CONFIRMED, SETTLED, VOID, OTHER_EPOCH = 0, 1, 2, 3, 4, 5
local STATE_OF = { R = RESERVED, C = CONFIRMED, V = VOID }
local HELD, RETURNED = 'H', 'R'
local byte, sub = string.byte, string.sub

-- MAX_ARGS bounds what is unpacked into one redis.call: Lua's stack is finite, and
-- gopher-lua's is the smaller one.
local MAX_ARGS = 500

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- digits joins digits to one string. (Of a single number, gopher-lua's concat makes
-- that number.)
local function digits(list)
  return '' .. table.concat(list)
end

-- units_of is the quantity in an entry.
local function units_of(entry)
  local high, low = byte(entry, 1, 2)
  return high * 256 + low
end

-- order_of is the order id in an entry.
local function order_of(entry)
  return sub(entry, 3, 10)
end

-- next_order reads the order that starts at a position of orders: its user, its
-- entry, and where the next one starts.
local function next_order(orders, at)
  local from = at + 1 + byte(orders, at)
  local after = from + 11 + byte(orders, from + 10) % 128
  return sub(orders, at + 1, from - 1), sub(orders, from, after - 1), after
end

-- next_record reads the record that starts at a position of a buyer's value: its
-- state, entry, batch, and where the next one starts.
local function next_record(records, at)
  local batch = at + 12 + byte(records, at + 11) % 128
  return sub(records, at, at), sub(records, at + 1, batch - 1), sub(records, batch, batch + 7), batch + 8
end

-- find looks for an order among a buyer's records: where its record starts and
-- ends, its state and its entry. nil: there is none.
local function find(records, order)
  local at = 1
  while at <= #records do
    local state, entry, _, after = next_record(records, at)
    if order_of(entry) == order then return at, after - 1, state, entry end
    at = after
  end
end

-- named: does a record of one of the orders' buyers name the batch?
local function named(buyers, orders, batch)
  local at = 1
  while at <= #orders do
    local user, _, after = next_order(orders, at)
    local records, pos = redis.call('HGET', buyers, user) or '', 1
    while pos <= #records do
      local _, _, of, next_pos = next_record(records, pos)
      if of == batch then return true end
      pos = next_pos
    end
    at = after
  end
  return false
end

-- standing is the state of the batch that a record names. Absent means settled only
-- because the record, read in this same script, is HELD. seen is what the script has found
-- so far, by batch: its value holds all its orders, too much to be read for each of them.
local function standing(batches, batch, state, seen)
  local found = seen[batch]
  if not found then
    local value = redis.call('HGET', batches, batch)
    found = value and STATE_OF[sub(value, 1, 1)] or ABSENT
    seen[batch] = found
  end
  if found == ABSENT and state == HELD then return SETTLED end
  return found
end

-- move takes units from the free stock to the held ones (back, when below zero: pass
-- 0 - n, as -n of 0 is -0, which Redis does not take for an integer).
-- meta's moves counts every change of a record: by it recount sees that one came
-- between, which equal sums before and after would not show.
local function move(stock, meta, units)
  redis.call('DECRBY', stock, units)
  redis.call('HINCRBY', meta, 'held', units)
  redis.call('HINCRBY', meta, 'moves', 1)
end

-- hold gives a HELD record to each of the orders that has no record, HELD or
-- RETURNED, and returns the units they took.
local function hold(buyers, orders, batch)
  local taken, at = 0, 1
  while at <= #orders do
    local user, entry
    user, entry, at = next_order(orders, at)
    local records = redis.call('HGET', buyers, user) or ''
    if not find(records, order_of(entry)) then
      redis.call('HSET', buyers, user, records .. HELD .. entry .. batch)
      taken = taken + units_of(entry)
    end
  end
  return taken
end

-- touch writes what is there already. WAIT waits for what its own connection wrote
-- last (later versions of Redis count writes only, not reads), so a script that
-- found its work done must write too, or WAIT would vouch for nothing.
local function touch(key, field, value)
  redis.call('HSET', key, field, value)
end

-- process is the Redis process that runs this: after a failover or a restart it is
-- another one. The embedded Redis has no such section: it is new whenever its process
-- is, and empty.
local function process()
  local info = redis.pcall('INFO', 'server')
  if type(info) ~= 'string' then return 'embedded' end
  return string.match(info, 'run_id:(%w+)')
end

-- A sold-out lease (soldout.lua) is meta's closed: when it lapses, in ms of Redis time,
-- for how long it was given at the most, and by which process.
local function give(meta, till, now, here)
  redis.call('HSET', meta, 'closed', till .. ' ' .. till - now .. ' ' .. here)
end

-- leased is when a lease lapses, or 0 when it has. A clock cannot
-- tell when a lease lapses that was given by another one, before a failover or before it
-- was set back: so that lease is waited for once more, whole. here is this process.
local function leased(meta, closed, now, here)
  local till, length, by = string.match(closed, '^(%d+) (%d+) (%w+)$')
  till, length = tonumber(till), tonumber(length)
  if by ~= here or till > now + length then
    till = now + length
    give(meta, till, now, here)
  elseif till <= now then
    redis.call('HDEL', meta, 'closed')
    return 0
  end
  return till
end

-- UNLEASED_MS is how long no lease is given after one kept an order from being adopted:
-- longer than it takes a check-back, or a reconciler, to come again.
local UNLEASED_MS = 120000

-- unheard: would adopting these orders give a record to a user who has none, while
-- gateways with a lease refuse whoever had none at its beginning? Then it has to wait.
local function unheard(buyers, meta, orders)
  local closed, now = redis.call('HGET', meta, 'closed'), now_ms()
  if not closed or leased(meta, closed, now, process()) == 0 then return false end
  local at = 1
  while at <= #orders do
    local user, _, after = next_order(orders, at)
    at = after
    if redis.call('HEXISTS', buyers, user) == 0 then
      redis.call('HSET', meta, 'unleased_until', now + UNLEASED_MS)
      return true
    end
  end
  return false
end
