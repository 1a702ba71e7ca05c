-- Takes all that a request claims, or nothing.
--
-- KEYS: the mark of an ended holding; for each part its bucket (not for slots) and its holds (not for
-- TAKE); for each amount its hash.
-- ARGV: holding or an empty string, lifetime of holds in ms, number of parts, number of amounts; for
-- each part the mode, microseconds per unit, capacity, units that must be available, units to take
-- at least, units to take if available; for each amount the start of its period and the limit.
-- Returns 1 or 0; for each part the microseconds to wait, units left, microseconds until it is full,
-- units taken; for each amount what is spent.

local mark, holding, ttl = key(), word(), number()
local parts, amounts = number(), number()

-- An abandoned request that was settled before this call arrived.
if holding ~= '' and redis.call('EXISTS', mark) == 1 then
  return {0, {}, {}}
end

-- A server that accepts no writes (it is out of memory, or a replica) is an outage. It must fail here,
-- before anything is done: after a first write that frees memory it would accept the others. The mark
-- does not exist, so nothing is set.
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
      redis.call('ZADD', part.holds, until_ms, holding)
      keep(part.holds, ttl)
      part.busy = part.busy + 1
    elseif part.mode == RESERVE then
      local member = holding .. ':' .. string.format('%.0f', part.least)
      -- The member exists if the connection broke and the call is repeated.
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

local states = {}
for _, part in ipairs(all) do
  local left, reset
  if part.mode == SLOT then
    left, reset = part.capacity - part.busy, 0
  else
    local bucket = part.bucket
    left = math.floor(bucket.level) - bucket.held
    reset = math.ceil((bucket.capacity - bucket.level + bucket.held) * bucket.interval)
  end
  states[#states + 1] = part.wait
  states[#states + 1] = math.max(0, left)
  states[#states + 1] = math.max(0, reset)
  states[#states + 1] = part.given
end
return {fits, states, sums}
