-- recount: counts the held units afresh from the records and says by how much stock
-- and held miss the total; with repair 1 it sets both right.
--
-- KEYS    stock buyers meta
-- ARGV    repair max_fields counted fields moves
-- RETURNS {1, drift of stock, drift of held}, {0}: not counted, or {-1}
--
-- counted empty: count here, unless there are more than max_fields buyers. Otherwise
-- the caller counted, in a pass that read so many fields and began at so many moves:
-- it counts only if no record changed since and no field was read twice.
--
-- With repair 2 nothing is counted: stock is lowered where it is above what total and
-- held leave, so that nothing is sold that is not there, and the drift of held is 0.

local stock, buyers, meta = unpack(KEYS)
local repair, max_fields, counted, fields, moves = unpack(ARGV, 1, 5)

local left = tonumber(redis.call('GET', stock))
if not left then return { NOT_READY } end

local now = redis.call('HMGET', meta, 'total', 'held', 'moves')
if repair == '2' then
  local drift = now[1] - (left + now[2])
  if drift < 0 then redis.call('INCRBY', stock, drift) end
  return { 1, drift, 0 }
end
local size = redis.call('HLEN', buyers)
if counted ~= '' then
  if now[3] ~= moves or size ~= tonumber(fields) then return { 0 } end
  counted = tonumber(counted)
else
  if size > tonumber(max_fields) then return { 0 } end
  counted = 0
  for _, records in ipairs(redis.call('HVALS', buyers)) do
    local at = 1
    while at <= #records do
      local state, entry, _, after = next_record(records, at)
      if state == HELD then counted = counted + units_of(entry) end
      at = after
    end
  end
end

local drift = now[1] - (left + counted)
if repair == '1' then
  if drift ~= 0 then redis.call('INCRBY', stock, drift) end
  redis.call('HSET', meta, 'held', counted)
end
return { 1, drift, counted - now[2] }
