-- Clamps what a request asks for. `guards.caps` does the same without a script.
--
-- Stage  on_request
-- Reads  request.body
-- Gives  {body = ...} if a number was too large, {allow = false, message, status} for too many tools, nil
--        otherwise

local most = {
  n = 4,
  max_tokens = 8192,            -- Chat Completions (older), Completions, Messages
  max_completion_tokens = 8192, -- Chat Completions
  max_output_tokens = 8192,     -- Responses
  top_logprobs = 5,
}
local most_tools = 128

local body = request.body
if type(body) ~= "table" then return nil end

if type(body.tools) == "table" and #body.tools > most_tools then
  return {allow = false, message = "At most " .. most_tools .. " tools are allowed here", status = 400}
end

local changed = false
for name, limit in pairs(most) do
  local asked = tonumber(body[name])
  if asked and (asked > limit or asked < 0) then
    body[name] = limit
    changed = true
  end
end
if not changed then return nil end
return {body = body}
