-- quota: takes tokens of a bucket that all gateways share, and counts the gateways.
--
-- KEYS    quota members
-- ARGV    rate burst want member ttl_ms
-- RETURNS {tokens granted, gateways}
--
-- The bucket gets rate tokens a second of Redis time and holds burst. A gateway counts
-- for ttl_ms after it last asked. While there are fewer tokens than are wanted, one
-- asking takes no more than its even part of them, so that all get some.

local quota, members = unpack(KEYS)
local rate, burst, want, member, ttl_ms = unpack(ARGV, 1, 5)
rate, burst, want, ttl_ms = tonumber(rate), tonumber(burst), tonumber(want), tonumber(ttl_ms)

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

redis.call('ZREMRANGEBYSCORE', members, '-inf', now_ms - ttl_ms)
redis.call('ZADD', members, now_ms, member)
local gateways = redis.call('ZCARD', members)

local was = redis.call('HMGET', quota, 'tokens', 'at_ms')
local tokens = burst
if was[1] then
  -- A clock that went back, after a failover, gives nothing and takes nothing.
  local passed = math.max(now_ms - was[2], 0)
  tokens = math.min(tonumber(was[1]) + passed * rate / 1000, burst)
end

local whole = math.floor(tokens)
local granted = math.min(want, whole)
if want > whole and whole > 0 then
  granted = math.max(math.floor(whole / gateways), 1)
end
redis.call('HSET', quota, 'tokens', string.format('%.6f', tokens - granted), 'at_ms', now_ms)
-- Buckets that nobody asks for any more go; they were full long before.
redis.call('PEXPIRE', quota, 3600000)
redis.call('PEXPIRE', members, 3600000)
return { granted, gateways }
