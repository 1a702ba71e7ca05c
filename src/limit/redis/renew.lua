-- Lets what is held be held for longer, and holds it again if a restart has lost it.
--
-- KEYS: of each lease the mark of what has ended; of each of its parts the bucket (not of slots)
-- and the holds.
-- ARGV: ms that holds last; of each lease its name and the number of its parts; of each part the
-- way it is counted and the units held.

local ttl = number()
local until_ms = now_ms + ttl

while word_at < #ARGV do
  local ended = redis.call('EXISTS', key()) == 1
  local lease, parts = word(), number()
  for _ = 1, parts do
    local mode, amount = number(), word()
    local member, name = lease, nil
    if mode == RESERVE then
      member, name = lease .. ':' .. amount, key()
    end
    local holds = key()
    if not ended then
      -- Removes nothing, and lets the rest pass where there is no memory left (see settle.lua).
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
