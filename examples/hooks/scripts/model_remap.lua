-- Answers requests for models that clients know by models that are there. Clients see their own name.
--
-- Stage  on_route
-- Reads  request.model
-- Gives  {model = ...}, or nil

local models = {
  ["gpt-4o"] = "sim-model",
  ["gpt-4o-mini"] = "sim-model",
  ["hosted-large"] = "sim-model",
}

local other = models[request.model]
if not other then return nil end
return {model = other}
