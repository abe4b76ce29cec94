-- reserve: asks for the orders of one batch at once. Winners get a HELD record, and
-- form the batch, RESERVED until its deadline.
--
-- KEYS    stock buyers batches pending meta
-- ARGV    batch starts_ms ends_ms paused limit hold_ms orders (user record)*
-- RETURNS {1, epoch, verdicts, found*}, {0}: the batch id is known already, or {-1}
--
-- user and record are those of each order, and the record is what a winner gets: to cut
-- and join them here, out of orders, took a fifth of the script's time.
-- verdicts is one digit an order, the first that applies of: 1 key reused, 2 replay,
-- 3 paused, 4 not started, 5 ended, 6 limit reached, 7 sold out; otherwise 0, reserved.
-- found is, for each 1 and 2 in turn, the record it met and one byte, its batch's state.
-- During a sold-out lease free units count for none.

local stock, buyers, batches, pending, meta = unpack(KEYS)
local batch, starts_ms, ends_ms, paused, limit, hold_ms, orders = unpack(ARGV, 1, 7)
local count = (#ARGV - 7) / 2 -- the i-th order's user is ARGV[6 + 2 * i], its record the next

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

-- The records of all users, in as few calls as there can be; false: there are none.
local records = {}
for first = 1, count, MAX_ARGS do
  local users = {}
  local last = math.min(first + MAX_ARGS - 1, count)
  for i = first, last do users[i - first + 1] = ARGV[6 + 2 * i] end
  local found = redis.call('HMGET', buyers, unpack(users))
  for i = first, last do records[i] = found[i - first + 1] end
end

local verdicts, reply, units, won, seen = {}, { OK }, 0, 0, {}
local fields = {} -- of HSET: the users who win, and all their records
local place_of = {} -- by such a user: where in fields their records are
local grown = {} -- by such a user who had records: where those begin that this call adds
for i = 1, count do
  local user, record = ARGV[6 + 2 * i], ARGV[7 + 2 * i]
  local place = place_of[user]
  local mine = place and fields[place] or records[i]
  local high, low = byte(record, 2, 3)
  local want = high * 256 + low
  local held, from, till, state, met, of = 0, nil, nil, nil, nil, nil
  if mine then
    held, from, till, state, met, of = meet(mine, sub(record, 12, -9))
  end

  local verdict
  if from then
    if place and from >= (grown[user] or 1) then
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
    if place then
      fields[place] = mine .. record
    else
      place = #fields + 2
      place_of[user], fields[place - 1], fields[place] = place, user, record
      if mine then
        grown[user], fields[place] = #mine + 1, mine .. record
      end
    end
  end
  verdicts[i] = verdict
end

if won > 0 then
  local winners = orders
  if won < count then
    local parts, at = {}, 1
    for i = 1, count do
      -- An order is the length of its user, the user, and the record without state and batch.
      local after = at + 1 + #ARGV[6 + 2 * i] + #ARGV[7 + 2 * i] - 9
      if verdicts[i] == WON then parts[#parts + 1] = sub(orders, at, after - 1) end
      at = after
    end
    winners = table.concat(parts)
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
