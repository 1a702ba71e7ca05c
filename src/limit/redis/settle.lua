-- Ends what is held for a request, takes what it came to, adds what it spent; and gives shares
-- back. Of one lease this happens once, however often it is asked for.
--
-- KEYS: the mark of what has ended; of each part its bucket (not of slots) and its holds (not of
-- GIVE); of each amount its hash.
-- ARGV: lease or nothing, ms that the mark lasts, number of parts, number of amounts; of each part
-- the way it is counted, microseconds for a unit, capacity, units held or given back, units used;
-- of each amount when its period began, how much was spent, when the period ends (0: never).

local DAYS = 7 * 86400

local mark, lease, marked = key(), word(), number()
local parts, amounts = number(), number()

-- Who asks again may have to ask once more, after a longer pause. Of a mark that is not there this
-- is a write that does nothing, and needs no memory: behind it a server that has none left lets the
-- others pass. What is given back must not wait for memory.
local ended = redis.call('PEXPIRE', mark, marked) == 1
if lease ~= '' then
  if ended then return 0 end
  redis.call('SET', mark, '1', 'PX', marked)
end

for _ = 1, parts do
  local mode, interval, capacity, amount, used = number(), number(), number(), number(), number()
  if mode == SLOT then
    redis.call('ZREM', key(), lease)
  else
    local bucket = open(key(), interval, capacity)
    if mode == RESERVE then
      local holds = key()
      sweep(bucket, holds)
      if redis.call('ZREM', holds, lease .. ':' .. string.format('%.0f', amount)) == 1 then
        bucket.held = math.max(0, bucket.held - amount)
      end
      bucket.level = bucket.level - used
    else
      bucket.level = math.min(capacity, bucket.level + amount)
    end
    save(bucket, 0)
  end
end

for _ = 1, amounts do
  local name = key()
  local start, amount, ends = number(), number(), number()
  local before, since = spent(name, start)
  redis.call('HSET', name, 's', since, 'a', string.format('%.17g', before + amount))
  if ends == 0 then
    redis.call('PERSIST', name)
  elseif since == start then
    redis.call('EXPIREAT', name, ends + DAYS)
  end
end
return 1
