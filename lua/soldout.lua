-- soldout: gives the caller a sold-out lease of a sale without free units, or a longer
-- one: until it lapses reserve sells nothing, whatever comes back. So whoever knows all
-- buyers there are at one moment of a lease knows all there can be till its end. While
-- there are free units none is given, so that they sell as soon as the last one lapses.
--
-- KEYS    stock buyers meta
-- ARGV    lease_ms buyers_max
-- RETURNS {1, left_ms, epoch, moves, buyers, process}: given, for left_ms from now; {0}: there
-- are free units, or an order waits to be adopted; {2}: more buyers than buyers_max; or {-1}.
-- All but 1 write nothing
--
-- The buyers are the same ones as at another call that returned the same epoch, moves
-- and process.

local stock, buyers, meta = unpack(KEYS)
local lease_ms, buyers_max = unpack(ARGV, 1, 2)

local OPEN, CLOSED, CROWDED = 0, 1, 2

local left = tonumber(redis.call('GET', stock))
if not left then return { NOT_READY } end
local now = now_ms()
local known = redis.call('HMGET', meta, 'epoch', 'moves', 'closed', 'unleased_until')
local wait = tonumber(known[4] or 0) - now
if left > 0 or wait > 0 and wait <= UNLEASED_MS then return { OPEN } end
local size = redis.call('HLEN', buyers)
if size > tonumber(buyers_max) then return { CROWDED } end

local here, till = process(), now + lease_ms
if known[3] then till = math.max(till, leased(meta, known[3], now, here)) end
give(meta, till, now, here)
return { CLOSED, till - now, tonumber(known[1]), tonumber(known[2]), size, here }
