-- Reads the answer of a webhook that accepts or rejects a key in its body, as {"code": 0, ...}.
--
-- Reads  data._http_status   status of the webhook's answer; anything except 2xx is rejected (the
--                            gateway itself treats 401, 403 and 404 as "unknown key" and other
--                            failures as "unavailable", so this is only a second check)
--        data.code           0 or nothing accepts, anything else rejects
--        data.message        the message to the client if the key is rejected
--        data.user_id        passed on to usage records and logs
-- Data   {"code": 0, "user_id": "user_001"}   {"code": 1001, "message": "Please top up"}
-- Use    type: webhook, with lua: {name: webhook_result}
--
-- A script is the whole decision. This one leaves status, expiry and balance to the webhook.

local http = tonumber(data._http_status)
if http and (http < 200 or http > 299) then
  return {allow = false, message = "The API key is not valid"}
end

if data.code ~= nil and data.code ~= "" and tonumber(data.code) ~= 0 then
  local message = data.message
  if type(message) ~= "string" or message == "" then message = "The API key was refused" end
  return {allow = false, message = message}
end

return {allow = true, metadata = {user_id = data.user_id}}
