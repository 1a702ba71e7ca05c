-- Accepts callers from Monday to Friday, 9:00 to 18:00.
--
-- Reads  data.utc_offset_hours   hours east of UTC, default 0; fractions such as 5.5 are possible;
--                                no daylight saving time
--        data.open_hour          default 9
--        data.close_hour         default 18; 24 is the end of the day
--        data.always             true: this key passes at any time
--        data.status             active (or 0, or nothing) passes, anything else is rejected
--        All fields except status may also be in data.metadata.
-- Data   {"utc_offset_hours": 8, "open_hour": 8, "close_hour": 20}   {"always": true}
--        HSET llmproxy:key:sk-... status active utc_offset_hours 8
-- Use    lua: {name: business_hours}
--
-- A script is the whole decision. This one does not check expires_at, quotas or addresses.

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
local function setting(name, default)
  return tonumber(data[name]) or tonumber(more[name]) or default
end

local passed = {allow = true, metadata = {user_id = data.user_id}}
local always = tostring(data.always or more.always or ""):lower()
if always == "true" or always == "1" then return passed end

local offset = math.floor(setting("utc_offset_hours", 0) * 3600)
local open, close = setting("open_hour", 9), setting("close_hour", 18)
local here = os.date("!*t", now() + offset)
local hour = here.hour + here.min / 60
if here.wday >= 2 and here.wday <= 6 and hour >= open and hour < close then return passed end
return {allow = false, message = "This API key may be used from Monday to Friday in business hours"}
