-- Masks addresses of e-mail in a request. `guards.redact` does more: other kinds, and the way back.
--
-- Stage  on_request
-- Reads  request.body: messages (Chat Completions, Messages), input (Responses), system, instructions, prompt
-- Gives  {body = ...} with [EMAIL_1] and so on in the place of addresses; nil if there is none

local body = request.body
if type(body) ~= "table" then return nil end

local numbers, count = {}, 0

local function masked(text)
  return (text:gsub("[%w%._%%+-]+@[%w-]+%.[%w%.-]*%a", function(address)
    if not numbers[address] then
      count = count + 1
      numbers[address] = "[EMAIL_" .. count .. "]"
    end
    return numbers[address]
  end))
end

-- A text, or a list of blocks: only what a model reads.
local function walk(value)
  if type(value) == "string" then return masked(value) end
  if type(value) ~= "table" then return value end
  for _, name in ipairs({"text", "content", "output"}) do
    if value[name] ~= nil then value[name] = walk(value[name]) end
  end
  for i, element in ipairs(value) do value[i] = walk(element) end
  return value
end

for _, name in ipairs({"system", "instructions", "messages", "input", "prompt"}) do
  if body[name] ~= nil then body[name] = walk(body[name]) end
end

if count == 0 then return nil end
return {body = body}
