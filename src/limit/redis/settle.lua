-- Ends the holds of a request, takes the used units, and adds the amounts spent; also gives shares
-- back. For one holding this happens once, even if the call is repeated.
--
-- KEYS: the mark of an ended holding; for each part its bucket (not for slots) and its holds (not for
-- GIVE); for each amount its hash.
-- ARGV: holding or an empty string, lifetime of the mark in ms, number of parts, number of amounts;
-- for each part the mode, microseconds per unit, capacity, units held or given back, units used; for
-- each amount the start of its period, the amount spent, the end of the period (0: never).

local DAYS = 7 * 86400

local mark, holding, marked = key(), word(), number()
local parts, amounts = number(), number()

-- A repeated call may have to be repeated again, after a longer pause, so the mark is extended. If the
-- mark does not exist, this write does nothing and needs no memory; after it a server that is out of
-- memory accepts the other writes. Giving back must not wait for memory.
local ended = redis.call('PEXPIRE', mark, marked) == 1
if holding ~= '' then
  if ended then return 0 end
  redis.call('SET', mark, '1', 'PX', marked)
end

for _ = 1, parts do
  local mode, interval, capacity, amount, used = number(), number(), number(), number(), number()
  if mode == SLOT then
    redis.call('ZREM', key(), holding)
  else
    local bucket = open(key(), interval, capacity)
    if mode == RESERVE then
      local holds = key()
      sweep(bucket, holds)
      if redis.call('ZREM', holds, holding .. ':' .. string.format('%.0f', amount)) == 1 then
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
