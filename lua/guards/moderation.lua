-- Asks a service whether a request may pass. `guards.moderation` does the same without a script, also beside
-- the backend.
--
-- Stage  on_request
-- Reads  request.body, request.model
-- Calls  http.post; the host must be one that scripts may call
-- Gives  {allow = false, message, status} if the service objects or fails, nil if not

local url = "http://moderation.internal/check"
local fail_open = false

local texts = {}
local function collect(value)
  if type(value) == "string" then
    texts[#texts + 1] = value
  elseif type(value) == "table" then
    collect(value.content)
    collect(value.text)
    for _, element in ipairs(value) do collect(element) end
  end
end

local body = request.body
if type(body) ~= "table" then return nil end
collect(body.messages)
collect(body.input)
if #texts == 0 then return nil end

local question = json.encode({texts = texts, model = request.model})
local called, answer = pcall(http.post, url, question, {["Content-Type"] = "application/json"})
local read, verdict = false, nil
if called and type(answer) == "table" and answer.status == 200 then
  read, verdict = pcall(json.decode, answer.body)
end
if read and type(verdict) == "table" and type(verdict.allow) == "boolean" then
  if verdict.allow then return nil end
  return {allow = false, message = verdict.message or "The content is not allowed here", status = 400}
end
if fail_open then return nil end
return {allow = false, message = "The request cannot be checked at the moment", status = 503}
