-- Accepts a key only from the addresses in its list.
--
-- Reads  data.allowed_ips   addresses, and IPv4 networks like 10.0.0.0/8: a list, the JSON text of
--                           one, or a text with commas; IPv6 only as whole addresses. Without a
--                           list every address is rejected, unlike with the default rules
--        data.status        active (or 0, or nothing) passes, anything else is rejected
--        request.ip         the client's address; behind a proxy see server.trusted_proxies
-- Data   {"allowed_ips": ["10.0.0.0/8", "192.0.2.7"]}
--        HSET llmproxy:key:sk-... status active allowed_ips 10.0.0.0/8,192.0.2.7
-- Use    lua: {name: ip_allow_list}
--
-- A script is the whole decision. This one does not check expires_at, quotas or balance.

local status = tostring(data.status or ""):lower()
if status ~= "" and status ~= "active" and tonumber(status) ~= 0 then
  return {allow = false, message = "The API key is not active"}
end

local function number(address) -- of an IPv4 address; nil for anything else
  local a, b, c, d = tostring(address):match("^(%d%d?%d?)%.(%d%d?%d?)%.(%d%d?%d?)%.(%d%d?%d?)$")
  a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
  if not a or a > 255 or b > 255 or c > 255 or d > 255 then return nil end
  return a << 24 | b << 16 | c << 8 | d
end

local function holds(entry, address)
  if entry:lower() == address:lower() then return true end
  local net, bits = entry:match("^(.-)/(%d%d?)$")
  net, bits = number(net), tonumber(bits)
  local here = number(address)
  return net and here and bits <= 32 and net >> 32 - bits == here >> 32 - bits
end

local list = data.allowed_ips
if type(list) == "string" and list:match("^%s*%[") then
  local read, value = pcall(json.decode, list)
  list = read and value
elseif type(list) == "string" then
  local text = list
  list = {}
  for entry in text:gmatch("[^,;%s]+") do list[#list + 1] = entry end
end

for _, entry in ipairs(type(list) == "table" and request.ip and list or {}) do
  if type(entry) == "string" and holds(entry:match("^%s*(.-)%s*$"), request.ip) then
    return {allow = true, metadata = {user_id = data.user_id}}
  end
end
return {allow = false, message = "This API key may not be used from this address"}
