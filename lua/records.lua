-- records: the records of many users, each with the state of its batch, at one instant.
--
-- KEYS    stock buyers batches
-- ARGV    user*
-- RETURNS {1, (records, states)*}, in the order of the users, states one digit a record;
-- or {-1}

local stock, buyers, batches = unpack(KEYS)

if redis.call('EXISTS', stock) == 0 then return { NOT_READY } end
local reply, seen = { 1 }, {}
for i = 1, #ARGV do
  local records, states, at = redis.call('HGET', buyers, ARGV[i]) or '', {}, 1
  while at <= #records do
    local state, _, batch, after = next_record(records, at)
    states[#states + 1] = standing(batches, batch, state, seen)
    at = after
  end
  reply[#reply + 1] = records
  reply[#reply + 1] = digits(states)
end
return reply
