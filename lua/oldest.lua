-- oldest: looks through a slice of the batches for the oldest that is open, RESERVED or
-- CONFIRMED, so that none of their orders leave Redis.
--
-- KEYS    stock batches
-- ARGV    cursor count
-- RETURNS {1, cursor, batch}, batch empty: none is open in this slice; or {-1}

local stock, batches = unpack(KEYS)
local cursor, count = unpack(ARGV, 1, 2)

if redis.call('EXISTS', stock) == 0 then return { NOT_READY } end
local slice = redis.call('HSCAN', batches, cursor, 'COUNT', count)
local oldest = ''
for i = 1, #slice[2], 2 do
  local batch, value = slice[2][i], slice[2][i + 1]
  if sub(value, 1, 1) ~= 'V' and (oldest == '' or batch < oldest) then oldest = batch end
end
return { 1, slice[1], oldest }
