-- The beginning of all limit scripts: the clock, buckets and holds.
--
-- A bucket is a hash: `l` units available at the time `t` (microseconds), `h` units held. A bucket
-- that does not exist is full. Holds are members of a sorted set, scored by the millisecond in which
-- they end: `holding:amount` for units, `holding` for slots.

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local now_ms = math.floor(now / 1000)

-- The modes of counting (see mode.rs).
local TAKE, RESERVE, SLOT, SHARE, GIVE = 1, 2, 3, 4, 5

-- Keys live a minute longer than needed, and ten years at most.
local MINUTE, LONGEST = 60000, 315360000000

local key_at, word_at = 0, 0

local function key()
  key_at = key_at + 1
  return KEYS[key_at]
end

local function word()
  word_at = word_at + 1
  return ARGV[word_at]
end

local function number()
  return tonumber(word())
end

-- Extends the lifetime of a key to at least this. Never shortens it: other replicas may have longer holds.
local function keep(name, ms)
  ms = math.ceil(math.min(ms, LONGEST))
  if redis.call('PTTL', name) < ms then
    redis.call('PEXPIRE', name, ms + MINUTE)
  end
end

local opened = {}

-- The current state of a bucket; the same table if it is opened again. A clock that was set back
-- neither removes nor adds units.
local function open(name, interval, capacity)
  if opened[name] then return opened[name] end
  local found = redis.call('HMGET', name, 'l', 't', 'h')
  local level, at = tonumber(found[1]), tonumber(found[2])
  if level and at then
    level = math.min(capacity, level + math.max(0, now - at) / interval)
  else
    level = capacity
  end
  local held = tonumber(found[3]) or 0
  opened[name] =
    {name = name, interval = interval, capacity = capacity, level = level, held = held}
  return opened[name]
end

local function save(bucket, ms)
  redis.call('HSET', bucket.name, 'l', bucket.level, 't', now, 'h', bucket.held)
  local full = math.max(0, bucket.capacity - bucket.level) * bucket.interval / 1000
  keep(bucket.name, math.max(full, ms))
end

-- Removes the holds that have expired.
local function sweep(bucket, holds)
  local before = bucket.held
  while true do
    local gone = redis.call('ZRANGEBYSCORE', holds, '-inf', now_ms, 'LIMIT', 0, 500)
    if #gone == 0 then break end
    for _, member in ipairs(gone) do
      bucket.held = bucket.held - tonumber(string.match(member, ':(%d+)$'))
    end
    redis.call('ZREMRANGEBYRANK', holds, 0, #gone - 1)
  end
  -- Without any hold the sum must be 0.
  if bucket.held < 0 or (bucket.held > 0 and redis.call('ZCARD', holds) == 0) then
    bucket.held = 0
  end
  if bucket.held ~= before then
    redis.call('HSET', bucket.name, 'h', bucket.held)
  end
end

-- The amount spent since `start`, and the start of its period, which may be a later one.
local function spent(name, start)
  local found = redis.call('HMGET', name, 's', 'a')
  local since, amount = tonumber(found[1]), tonumber(found[2])
  if since and amount and since >= start then
    return amount, since
  end
  return 0, start
end
