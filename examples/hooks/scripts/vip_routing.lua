-- Sends the requests of VIPs to a backend of their own, as long as it works.
--
-- Stage  on_route
-- Reads  principal.metadata.vip_level, backends
-- Gives  the only backends that may be picked

local level = tonumber(principal.metadata and principal.metadata.vip_level) or 0
local vip = backends.vip
if level >= 1 and vip and vip.healthy then
  return {backends = {"vip"}, metadata = {route = "vip"}}
end
if backends.standard then
  return {backends = {"standard"}}
end
return nil
