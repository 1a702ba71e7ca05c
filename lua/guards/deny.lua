-- Rejects requests whose texts have a denied word. `guards.deny` does the same without a script.
--
-- Stage  on_request
-- Reads  request.body
-- Gives  {allow = false, message, status} if a word is found, nil if not
--
-- Change the list. Words are compared in lower case, as plain texts.

local denied = {"project nightfall", "launch code"}

local function has(value)
  if type(value) == "string" then
    local text = value:lower()
    for _, word in ipairs(denied) do
      if text:find(word, 1, true) then return true end
    end
  elseif type(value) == "table" then
    for _, element in pairs(value) do
      if has(element) then return true end
    end
  end
  return false
end

local body = request.body
if type(body) ~= "table" then return nil end
for _, name in ipairs({"messages", "input", "prompt", "system", "instructions"}) do
  if has(body[name]) then
    return {allow = false, message = "The content is not allowed here", status = 400}
  end
end
return nil
