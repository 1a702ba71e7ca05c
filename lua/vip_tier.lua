-- Gives each caller a tier: one of `tiers` in the configuration, if it is there; metadata.tier, a
-- tag, and limits. Accepts every active caller.
--
-- Reads  data.tier or data.level, else the same in data.metadata (also as JSON text), else
--        metadata.tier of an earlier script; names and numbers as below, unknown ones are standard
--        data.status   active (or 0, or nothing) passes, anything else is rejected
-- Data   {"level": 1}   {"tier": "enterprise"}   {"metadata": {"tier": "vip"}}
--        HSET llmproxy:key:sk-... status active level 1
-- Use    lua: {name: vip_tier}; to change the figures, copy it to lua/vip_tier.lua beside the
--        configuration
--
-- These are per-key limits: each field takes precedence over rate_limit.per_key of the configuration,
-- and together they replace `limits` in the key's data. A script is the whole decision. This one does
-- not check expires_at, quotas or addresses.

local limits = {
  standard = {requests_per_minute = 60, tokens_per_minute = 100000, max_concurrent = 4},
  vip = {requests_per_minute = 600, tokens_per_minute = 1000000, max_concurrent = 32},
  enterprise = {requests_per_minute = 6000, tokens_per_minute = 10000000, max_concurrent = 256},
}
local by_level = {["0"] = "standard", ["1"] = "vip", ["2"] = "enterprise"}

local status = tostring(data.status or ""):lower()
if status ~= "" and status ~= "active" and tonumber(status) ~= 0 then
  return {allow = false, message = "The API key is not active"}
end

local more = data.metadata
if type(more) == "string" then
  local read, value = pcall(json.decode, more)
  more = read and value
end
if type(more) ~= "table" then more = {} end

local said = data.tier or data.level or more.tier or more.level or metadata.tier
local number = math.tointeger(tonumber(said))
local tier = number and by_level[tostring(number)] or tostring(said):lower()
if not limits[tier] then tier = "standard" end

return {
  allow = true,
  metadata = {tier = tier, user_id = data.user_id},
  tags = {"tier:" .. tier},
  tier = tier,
  limits = limits[tier],
}
