-- Extends the lifetime of holds, and restores them if a restart of Redis has lost them.
--
-- KEYS: for each holding the mark of its end; for each of its parts the bucket (only for units) and
-- the holds.
-- ARGV: lifetime of holds in ms; for each holding its name and the number of its parts; for each part
-- the mode and the units held.

local ttl = number()
local until_ms = now_ms + ttl

while word_at < #ARGV do
  local ended = redis.call('EXISTS', key()) == 1
  local holding, parts = word(), number()
  for _ = 1, parts do
    local mode, amount = number(), word()
    local member, name = holding, nil
    if mode == RESERVE then
      member, name = holding .. ':' .. amount, key()
    end
    local holds = key()
    if not ended then
      -- Removes nothing, and makes a server that is out of memory accept the rest (see settle.lua).
      redis.call('ZREMRANGEBYSCORE', holds, '(0', '0')
      local again = redis.call('ZADD', holds, until_ms, member) == 1
      keep(holds, ttl)
      if name then
        if again then redis.call('HINCRBY', name, 'h', amount) end
        keep(name, ttl)
      end
    end
  end
end
return 1
