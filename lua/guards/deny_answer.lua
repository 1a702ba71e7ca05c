-- Drops events of a stream whose text has a denied word. `guards.deny` with `on: [answer]` also finds words
-- that lie in several events; a script sees one event at a time.
--
-- Stage  on_stream_event
-- Reads  event.content, event.reasoning
-- Gives  false if a word is found, nil if not

local denied = {"nightfall"}

for _, text in ipairs({event.content or "", event.reasoning or ""}) do
  local lower = tostring(text):lower()
  for _, word in ipairs(denied) do
    if lower:find(word, 1, true) then return false end
  end
end
return nil
