-- purge: removes those of the given batches that are VOID and older than an age, by
-- Redis time.
--
-- KEYS    stock batches
-- ARGV    age_ms batch*
-- RETURNS how many, or -1

local stock, batches = unpack(KEYS)
local age_ms = ARGV[1]

if redis.call('EXISTS', stock) == 0 then return NOT_READY end
local before, purged = now_ms() - age_ms, 0
for i = 2, #ARGV do
  local value = redis.call('HGET', batches, ARGV[i])
  if value and sub(value, 1, 1) == 'V' and tonumber(sub(value, 2)) <= before then
    purged = purged + redis.call('HDEL', batches, ARGV[i])
  end
end
return purged
