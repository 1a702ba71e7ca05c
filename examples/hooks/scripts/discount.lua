-- Bills VIPs for fewer tokens. What the engine has counted stays in the record.
--
-- Stage  on_usage
-- Reads  usage.total_tokens, principal.metadata.vip_level
-- Gives  fields of the usage record

local price = 0.00002                   -- of a token

local level = tonumber(principal.metadata and principal.metadata.vip_level) or 0
local discount = level >= 3 and 0.5 or level >= 1 and 0.2 or 0
local billable = math.floor((usage.total_tokens or 0) * (1 - discount))
return {billable_tokens = billable, discount = discount, cost = billable * price}
