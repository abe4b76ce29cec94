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
local WON, KEY_REUSED, REPLAY, PAUSED, NOT_STARTED, ENDED, LIMIT, SOLD_OUT = 0, 1, 2, 3, 4, 5, 6, 7

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

-- The records of all users, in as few calls as there can be.
local users, records_of, user_of, entry_of = {}, {}, {}, {}
local at = 1
while at <= #orders do
  local user, entry
  user, entry, at = next_order(orders, at)
  user_of[#user_of + 1], entry_of[#entry_of + 1] = user, entry
  if not records_of[user] then
    users[#users + 1] = user
    records_of[user] = ''
  end
end
for first = 1, #users, MAX_ARGS do
  local last = math.min(first + MAX_ARGS - 1, #users)
  local found = redis.call('HMGET', buyers, unpack(users, first, last))
  for i = first, last do
    records_of[users[i]] = found[i - first + 1] or ''
  end
end

local verdicts, reply, winners, changed, won, units = {}, { OK }, {}, {}, {}, 0
for i = 1, #user_of do
  local user, entry = user_of[i], entry_of[i]
  local records, want, key = records_of[user], units_of(entry), sub(entry, 11)

  -- What the user holds, and the key's order: HELD before RETURNED, then the latest.
  local held, met, met_state, met_entry, met_batch, pos = 0, nil, nil, nil, nil, 1
  while pos <= #records do
    local state, other, of, after = next_record(records, pos)
    if state == HELD then held = held + units_of(other) end
    if sub(other, 11) == key then
      local better = not met
      if met then
        if state == met_state then
          better = later(order_of(other), order_of(met_entry))
        else
          better = state == HELD
        end
      end
      if better then
        met, met_state, met_entry, met_batch = sub(records, pos, after - 1), state, other, of
      end
    end
    pos = after
  end

  local verdict
  if met then
    local state
    if won[order_of(met_entry)] then
      state = RESERVED -- by this very call
    elseif met_batch == batch then
      return { BATCH_KNOWN } -- settled already; of the batch nothing has been written so far
    else
      state = standing(batches, met_batch, met_state)
    end
    reply[#reply + 1] = met .. string.char(state)
    verdict = units_of(met_entry) == want and REPLAY or KEY_REUSED
  elseif closed then
    verdict = closed
  elseif held + want > limit then
    verdict = LIMIT
  elseif want > left - units then
    verdict = SOLD_OUT
  else
    verdict = WON
    units = units + want
    won[order_of(entry)] = true
    winners[#winners + 1] = string.char(#user) .. user .. entry
    records_of[user] = records .. HELD .. entry .. batch
    changed[user] = true
  end
  verdicts[i] = verdict
end

if units > 0 then
  local fields = {}
  for i = 1, #users do
    if changed[users[i]] then
      fields[#fields + 1] = users[i]
      fields[#fields + 1] = records_of[users[i]]
    end
  end
  for first = 1, #fields, MAX_ARGS do
    redis.call('HSET', buyers, unpack(fields, first, math.min(first + MAX_ARGS - 1, #fields)))
  end
  redis.call('HSET', batches, batch, 'R' .. table.concat(winners))
  redis.call('ZADD', pending, now + hold_ms, batch)
  move(stock, meta, units)
end

table.insert(reply, 2, tonumber(known[1]))
table.insert(reply, 3, digits(verdicts))
return reply
