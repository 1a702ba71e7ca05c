-- Accepts only requests for the models in the list of the key.
--
-- Reads  data.models or data.allowed_models, else the same in data.metadata: names, or prefixes
--                        with * at the end; a list, the JSON text of one, or a text with commas.
--                        Without a list, or with an empty one, every model is allowed
--        data.status     active (or 0, or nothing) passes, anything else is rejected
--        request.model   nil with GET /v1/models, which passes. A POST without a model, for which
--                        an engine uses its default, is rejected if there is a list
-- Data   {"models": ["qwen-7b", "llama-*"]}   {"metadata": {"models": ["qwen-7b"]}}
--        HSET llmproxy:key:sk-... status active models qwen-7b,llama-*
-- Use    lua: {name: model_permission}
--
-- A script is the whole decision. This one does not check expires_at, quotas or addresses.

local status = tostring(data.status or ""):lower()
if status ~= "" and status ~= "active" and tonumber(status) ~= 0 then
  return {allow = false, message = "The API key is not active"}
end

local function decoded(value)
  if type(value) ~= "string" or not value:match("^%s*[%[{]") then return value end
  local read, result = pcall(json.decode, value)
  return read and result -- false: an unreadable list allows nothing
end

local more = decoded(data.metadata)
local own = type(more) == "table" and more or {}
local list = decoded(data.models or data.allowed_models or own.models or own.allowed_models)
if list == nil then list = more ~= false and {} end
if type(list) == "string" then
  local text = list
  list = {}
  for name in text:gmatch("[^,;%s]+") do list[#list + 1] = name end
end

local passed = {allow = true, metadata = {user_id = data.user_id}}
local model = request.model
if type(list) == "table" and next(list) == nil then return passed end
if model == nil and request.method ~= "POST" then return passed end
for _, name in ipairs(type(list) == "table" and list or {}) do
  name = tostring(name)
  local prefix = name:match("^(.*)%*$")
  if name == model or prefix and model and model:sub(1, #prefix) == prefix then return passed end
end
return {allow = false, message = "This API key may not call " .. (model or "without a model")}
