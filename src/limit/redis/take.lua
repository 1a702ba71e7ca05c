-- Takes all that a request claims, or nothing.
--
-- KEYS: the mark of what has ended; of each part its bucket (not of slots) and its holds (not of
-- TAKE); of each amount its hash.
-- ARGV: lease or nothing, ms that holds last, number of parts, number of amounts; of each part the
-- way it is counted, microseconds for a unit, capacity, units that must be there, units wanted at
-- least, units wanted; of each amount when its period began and how much may be spent.
-- Answers 1 or 0; of each part the microseconds to wait, units left, microseconds until it is full,
-- units given; of each amount how much is spent.

local mark, lease, ttl = key(), word(), number()
local parts, amounts = number(), number()

-- A request that was given up, and was settled before it came here.
if lease ~= '' and redis.call('EXISTS', mark) == 1 then
  return {0, {}, {}}
end

-- A server that takes no writes (it has no memory left, or is a replica) is an outage, and says so
-- here, before anything is done: after a first write that frees memory it would let the others pass.
-- There is no mark, so that nothing is set.
redis.call('SET', mark, '1', 'XX')

local all, fits = {}, 1
for i = 1, parts do
  local part = {mode = number()}
  local interval, capacity = number(), number()
  part.need, part.least, part.most = number(), number(), number()
  part.wait, part.given = 0, 0
  if part.mode == SLOT then
    part.holds, part.capacity = key(), capacity
    part.busy = redis.call('ZCOUNT', part.holds, '(' .. now_ms, '+inf')
    if part.busy + 1 > capacity then part.wait = 1 end
  else
    part.bucket = open(key(), interval, capacity)
    if part.mode ~= TAKE then
      part.holds = key()
      sweep(part.bucket, part.holds)
    end
    local missing = part.need - (part.bucket.level - part.bucket.held)
    if missing > 0 then part.wait = math.max(1, math.ceil(missing * interval)) end
  end
  if part.wait > 0 then fits = 0 end
  all[i] = part
end

local sums = {}
for i = 1, amounts do
  local start, limit = number(), number()
  local amount = spent(key(), start)
  if amount >= limit then fits = 0 end
  sums[i] = string.format('%.17g', amount)
end

if fits == 1 then
  local until_ms = now_ms + ttl
  for _, part in ipairs(all) do
    local bucket = part.bucket
    if part.mode == SLOT then
      redis.call('ZREMRANGEBYSCORE', part.holds, '-inf', now_ms)
      redis.call('ZADD', part.holds, until_ms, lease)
      keep(part.holds, ttl)
      part.busy = part.busy + 1
    elseif part.mode == RESERVE then
      local member = lease .. ':' .. string.format('%.0f', part.least)
      -- It is there if the connection broke and the same is asked once more.
      if redis.call('ZADD', part.holds, until_ms, member) == 1 then
        bucket.held = bucket.held + part.least
      end
      keep(part.holds, ttl)
      save(bucket, ttl)
    else
      local free = math.floor(bucket.level - bucket.held)
      part.given = math.max(part.least, math.min(part.most, free))
      bucket.level = bucket.level - part.given
      save(bucket, 0)
    end
  end
end

local told = {}
for _, part in ipairs(all) do
  local left, reset
  if part.mode == SLOT then
    left, reset = part.capacity - part.busy, 0
  else
    local bucket = part.bucket
    left = math.floor(bucket.level) - bucket.held
    reset = math.ceil((bucket.capacity - bucket.level + bucket.held) * bucket.interval)
  end
  told[#told + 1] = part.wait
  told[#told + 1] = math.max(0, left)
  told[#told + 1] = math.max(0, reset)
  told[#told + 1] = part.given
end
return {fits, told, sums}
