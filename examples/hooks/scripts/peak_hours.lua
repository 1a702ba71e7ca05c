-- Allows fewer requests at peak hours, except for VIPs. The hours are those of the gateway's time zone (TZ).
--
-- Stage  rate_limit
-- Reads  current_time.hour, principal.metadata.vip_level, env.PEAK_FROM, env.PEAK_UNTIL
-- Gives  {limits = ...} for this request, or nil

local from = tonumber(env.PEAK_FROM) or 9
local until_hour = tonumber(env.PEAK_UNTIL) or 18

local hour = current_time.hour
local level = tonumber(principal.metadata and principal.metadata.vip_level) or 0
if level >= 1 or hour < from or hour >= until_hour then return nil end
return {limits = {requests_per_minute = 2}, tags = {"peak"}}
