-- reserve: asks for the orders of one batch at once. Winners get a HELD record, and
-- form the batch, RESERVED until its deadline.
--
-- KEYS    stock buyers batches pending meta
-- ARGV    batch starts_ms ends_ms paused limit hold_ms orders
-- RETURNS {1, epoch, verdicts, found*}, {0}: the batch id is known already, or {-1}
--
-- verdicts is one digit an order, the first that applies of: 1 key reused, 2 replay,
-- 3 paused, 4 not started, 5 ended, 6 limit reached, 7 sold out; otherwise 0, reserved.
-- found is, for each 1 and 2 in turn, the record it met and one byte, its batch's state.
-- During a sold-out lease free units count for none.

local stock, buyers, batches, pending, meta = unpack(KEYS)
local batch, starts_ms, ends_ms, paused, limit, hold_ms, orders = unpack(ARGV, 1, 7)

local BATCH_KNOWN, OK = 0, 1
local WON, KEY_REUSED, REPLAY, PAUSED, NOT_STARTED, ENDED, LIMIT, SOLD_OUT = '0', '1', '2', '3', '4', '5', '6', '7'

local left = tonumber(redis.call('GET', stock))
if not left then return { NOT_READY } end
if redis.call('HEXISTS', batches, batch) == 1 then return { BATCH_KNOWN } end

local now = now_ms()
local closed
if paused == '1' then
  closed = PAUSED
elseif now < tonumber(starts_ms) then
  closed = NOT_STARTED
elseif now >= tonumber(ends_ms) then
  closed = ENDED
end
limit = tonumber(limit)
local known = redis.call('HMGET', meta, 'epoch', 'closed')
if left > 0 and known[2] and leased(meta, known[2], now, process()) > 0 then left = 0 end

-- later: is order id a greater than b? Not by <, which compares by locale.
local function later(a, b)
  for i = 1, 8 do
    local x, y = byte(a, i), byte(b, i)
    if x ~= y then return x > y end
  end
  return false
end

-- meet reads a buyer's records: how many units they hold and, if one has the key, that
-- record's place, its state, entry and batch. Of several: HELD before RETURNED, then the
-- latest.
local function meet(records, key)
  local held, from, till, met_state, met_entry, met_batch = 0, nil, nil, nil, nil, nil
  local at = 1
  while at <= #records do
    local state, entry, batch, after = next_record(records, at)
    if state == HELD then held = held + units_of(entry) end
    if sub(entry, 11) == key then
      local better = not from or state == HELD
      if from and state == met_state then better = later(order_of(entry), order_of(met_entry)) end
      if better then
        from, till, met_state, met_entry, met_batch = at, after - 1, state, entry, batch
      end
    end
    at = after
  end
  return held, from, till, met_state, met_entry, met_batch
end

-- The orders, and each user once: almost every user has one order here, and no record.
local count, from_of, user_of, entry_of = 0, {}, {}, {}
local users, place_of = {}, {}
local at = 1
while at <= #orders do
  local user, entry, after = next_order(orders, at)
  local place = place_of[user]
  if not place then
    place = #users + 1
    users[place], place_of[user] = user, place
  end
  count = count + 1
  from_of[count], user_of[count], entry_of[count] = at, place, entry
  at = after
end
from_of[count + 1] = at

-- The records of all users, in as few calls as there can be.
local records = {}
for first = 1, #users, MAX_ARGS do
  local last = math.min(first + MAX_ARGS - 1, #users)
  local found = redis.call('HMGET', buyers, unpack(users, first, last))
  for i = first, last do
    records[i] = found[i - first + 1] or ''
  end
end

local verdicts, reply, units, won = {}, { OK }, 0, 0
local grown = {} -- by user: where the records begin that this call adds
local seen = {}
for i = 1, count do
  local user, entry = user_of[i], entry_of[i]
  local mine, want = records[user], units_of(entry)
  local held, from, till, state, met, of = 0, nil, nil, nil, nil, nil
  if mine ~= '' then
    held, from, till, state, met, of = meet(mine, sub(entry, 11))
  end

  local verdict
  if from then
    if grown[user] and from >= grown[user] then
      state = RESERVED -- by this very call
    elseif of == batch then
      return { BATCH_KNOWN } -- settled already; of the batch nothing has been written so far
    else
      state = standing(batches, of, state, seen)
    end
    reply[#reply + 1] = sub(mine, from, till) .. string.char(state)
    verdict = units_of(met) == want and REPLAY or KEY_REUSED
  elseif closed then
    verdict = closed
  elseif held + want > limit then
    verdict = LIMIT
  elseif want > left - units then
    verdict = SOLD_OUT
  else
    verdict = WON
    won = won + 1
    units = units + want
    grown[user] = grown[user] or #mine + 1
    records[user] = mine .. HELD .. entry .. batch
  end
  verdicts[i] = verdict
end

if won > 0 then
  local winners = orders
  if won < count then
    local parts = {}
    for i = 1, count do
      if verdicts[i] == WON then parts[#parts + 1] = sub(orders, from_of[i], from_of[i + 1] - 1) end
    end
    winners = table.concat(parts)
  end
  local fields = {}
  for i = 1, #users do
    if grown[i] then
      fields[#fields + 1] = users[i]
      fields[#fields + 1] = records[i]
    end
  end
  for first = 1, #fields, MAX_ARGS do
    redis.call('HSET', buyers, unpack(fields, first, math.min(first + MAX_ARGS - 1, #fields)))
  end
  redis.call('HSET', batches, batch, 'R' .. winners)
  redis.call('ZADD', pending, now + hold_ms, batch)
  move(stock, meta, units)
end

table.insert(reply, 2, tonumber(known[1]))
table.insert(reply, 3, table.concat(verdicts))
return reply
