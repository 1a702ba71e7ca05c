-- Masks e-mail addresses in the messages of a request. The guard `redact` does the same without a script, and
-- puts the addresses back into the answer; after this script there is nothing left for it to find.
--
-- Stage  on_request
-- Reads  request.body: messages (Chat Completions, Messages), input (Responses), system, instructions
-- Gives  {body = ...} with [EMAIL] in the place of addresses; nil if there is none

local found = 0

local function masked(text)
  local new, count = text:gsub("[%w%._%%+-]+@[%w-]+%.[%w%.-]*%a", "[EMAIL]")
  found = found + count
  return new
end

local function walk(value)
  if type(value) == "string" then return masked(value) end
  if type(value) ~= "table" then return value end
  for _, name in ipairs({"text", "content"}) do
    if value[name] ~= nil then value[name] = walk(value[name]) end
  end
  for i, element in ipairs(value) do value[i] = walk(element) end
  return value
end

local body = request.body
for _, name in ipairs({"system", "instructions", "messages", "input"}) do
  if body[name] ~= nil then body[name] = walk(body[name]) end
end
if found == 0 then return nil end
return {body = body}
