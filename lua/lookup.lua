-- lookup: one user's records, with the state of each one's batch.
--
-- KEYS    stock buyers batches
-- ARGV    user
-- RETURNS {1, records, states}, states one digit a record, or {-1}

local stock, buyers, batches = unpack(KEYS)
local user = ARGV[1]

if redis.call('EXISTS', stock) == 0 then return { NOT_READY } end
local records, states, seen, at = redis.call('HGET', buyers, user) or '', {}, {}, 1
while at <= #records do
  local state, _, batch, after = next_record(records, at)
  states[#states + 1] = standing(batches, batch, state, seen)
  at = after
end
return { 1, records, digits(states) }
