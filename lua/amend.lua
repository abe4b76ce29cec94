-- amend: one order's record becomes another, if it still is what the caller saw; the
-- units move with it, and stock may go below zero. Idempotent: a second call finds
-- another record than was seen.
--
-- KEYS    stock buyers meta
-- ARGV    user seen record
-- RETURNS 1: amended; 0: the record is not, or no longer, what was seen; or -1
--
-- seen and record are whole records of one order: state, entry and batch.

local stock, buyers, meta = unpack(KEYS)
local user, seen, record = unpack(ARGV, 1, 3)

if redis.call('EXISTS', stock) == 0 then return NOT_READY end

local was, entry = next_record(seen, 1)
local is, other = next_record(record, 1)
local records = redis.call('HGET', buyers, user) or ''
local first, last = find(records, order_of(entry))
if not first or sub(records, first, last) ~= seen then return 0 end

local units = 0
if was == HELD then units = 0 - units_of(entry) end
if is == HELD then units = units + units_of(other) end
redis.call('HSET', buyers, user, sub(records, 1, first - 1) .. record .. sub(records, last + 1))
move(stock, meta, units)
return 1
