-- Rejects a caller whose balance is missing, not a number, or used up.
--
-- Reads  data.balance   a number, or a number as text
--        data.status    active (or 0, or nothing) passes, anything else is rejected
--        data.user_id   passed on to usage records and logs
-- Data   {"status": "active", "balance": 12.5, "user_id": "user_001"}
--        HSET llmproxy:key:sk-... status active balance 12.5 user_id user_001
-- Use    lua: {name: balance}
--
-- A script is the whole decision. This one does not check expires_at, quotas or addresses.

local status = tostring(data.status or ""):lower()
if status ~= "" and status ~= "active" and tonumber(status) ~= 0 then
  return {allow = false, message = "The API key is not active", status = 403}
end

local balance = tonumber(data.balance)
if not balance then
  return {allow = false, message = "The account has no balance", status = 429}
end
if balance <= 0 then
  return {allow = false, message = "The balance of the account is used up", status = 429}
end

return {allow = true, metadata = {user_id = data.user_id}}
