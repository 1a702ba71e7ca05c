-- Builds the environment of scripts, once per interpreter. Returns a table: the metatable of a call's
-- globals (meta), the metatable of header tables (headers), the table that the inputs of a call are set
-- in (inputs), the metatable of globals that a call only reads (only_read), metatables that make tables
-- callable (callables), and the word http, which not every script has.
--
-- No instruction hook runs inside a C function, and a script must not be able to stay in one. So
-- functions that walk tables of any length are written in Lua here, and functions that search strings
-- are written in Rust and check the time.

local native = ...
local error, getmetatable, setmetatable, rawget, rawset = error, getmetatable, setmetatable, rawget, rawset
local next, pcall, select, tostring, type = next, pcall, select, tostring, type
local plain_concat, plain_unpack = table.concat, table.unpack
local plain_format, look = string.format, native.look
local format_arguments <const>, format_length <const> = 50, 10000
local concat_limit <const>, unpack_limit <const> = 1000000, 100000

local function expect(t, name)
  if type(t) ~= "table" then
    error("bad argument #1 to '" .. name .. "' (table expected, got " .. type(t) .. ")", 3)
  end
end

-- A copy of t[i..j] without a metatable, which C functions can walk without calling metamethods.
local function slice(t, i, j)
  local copy, n = {}, 0
  for at = i, j do
    n = n + 1
    copy[n] = t[at]
  end
  return copy, n
end

local tables = {pack = table.pack}

function tables.insert(t, ...)
  expect(t, "insert")
  local n, count = #t, select("#", ...)
  if count == 1 then
    t[n + 1] = (...)
  elseif count == 2 then
    local position, value = ...
    if math.type(position) ~= "integer" or position < 1 or position > n + 1 then
      error("bad argument #2 to 'insert' (position out of bounds)", 2)
    end
    for at = n, position, -1 do t[at + 1] = t[at] end
    t[position] = value
  else
    error("wrong number of arguments to 'insert'", 2)
  end
end

function tables.remove(t, position)
  expect(t, "remove")
  local n = #t
  if position == nil then position = n end
  if n + 1 ~= position and (position < 1 or position > n + 1) and not (n == 0 and position == 0) then
    error("bad argument #2 to 'remove' (position out of bounds)", 2)
  end
  local value = t[position]
  for at = position, n - 1 do t[at] = t[at + 1] end
  if position <= n then t[n] = nil else t[position] = nil end
  return value
end

function tables.move(from, first, last, to, target)
  expect(from, "move")
  target = target or from
  if last >= first then
    if to > last or to <= first or target ~= from then
      for step = 0, last - first do target[to + step] = from[first + step] end
    else
      for step = last - first, 0, -1 do target[to + step] = from[first + step] end
    end
  end
  return target
end

function tables.concat(t, separator, i, j)
  expect(t, "concat")
  i, j = i or 1, j or #t
  if j - i >= concat_limit then error("too many values for 'concat'", 2) end
  local copy, n = slice(t, i, j)
  for at = 1, n do
    local kind = type(copy[at])
    if kind ~= "string" and kind ~= "number" then
      error("invalid value (at index " .. (i + at - 1) .. ") in table for 'concat'", 2)
    end
  end
  local whole = plain_concat(copy, separator, 1, n)
  look()
  return whole
end

function tables.unpack(t, i, j)
  i, j = i or 1, j or #t
  if j - i >= unpack_limit then error("too many results to unpack", 2) end
  local copy, n = slice(t, i, j)
  return plain_unpack(copy, 1, n)
end

-- Merge sort: its steps are Lua instructions, even if the comparison is a C function.
function tables.sort(t, before)
  expect(t, "sort")
  before = before or function(a, b) return a < b end
  local n, from, to, width = #t, {}, {}, 1
  for at = 1, n do from[at] = t[at] end
  while width < n do
    for start = 1, n, 2 * width do
      local left, middle = start, start + width
      local right, stop = middle, start + 2 * width
      for at = start, (stop <= n and stop or n + 1) - 1 do
        if left < middle and left <= n and (right >= stop or right > n or not before(from[right], from[left])) then
          to[at], left = from[left], left + 1
        else
          to[at], right = from[right], right + 1
        end
      end
    end
    from, to, width = to, from, 2 * width
  end
  for at = 1, n do t[at] = from[at] end
end

local strings = {
  char = string.char, len = string.len,
  find = native.find, match = native.match, gsub = native.gsub, rep = native.rep,
}

-- C functions walk a long text to its end: after each one the time is checked.
local long_text <const> = 4096

local function walked(call)
  return function(text, ...)
    if type(text) == "string" and #text > long_text then look() end
    return call(text, ...)
  end
end

for _, name in ipairs({"byte", "lower", "reverse", "sub", "upper"}) do
  strings[name] = walked(string[name])
end

-- C reads every argument to its end, however little of it is needed.
function strings.format(format, ...)
  if #format > format_length or select("#", ...) > format_arguments then
    error("too much to format", 2)
  end
  if format:find("%q", 1, true) then error("'%q' is not available", 2) end
  local text = plain_format(format, ...)
  look()
  return text
end

local step = native.step
function strings.gmatch(text, pattern, init)
  local from, last = init or 1, nil
  return function()
    -- start of the next search, end of the match, captures
    local function take(next, finish, ...)
      if next then from, last = next, finish end
      return ...
    end
    return take(step(text, pattern, from, last))
  end
end

local maths = {}
for name, value in pairs(math) do maths[name] = value end
maths.randomseed = nil
maths.random = native.random
maths.pow = maths.pow or function(x, y) return x ^ y end

-- A read-only view of a library.
local function frozen(library, name)
  return setmetatable({}, {
    __index = library,
    __newindex = function() error("'" .. name .. "' cannot be changed", 2) end,
    __metatable = false,
  })
end

-- A table that is also a function.
local function callable(call, library)
  return {
    __index = library,
    __call = function(_, ...) return call(...) end,
    __newindex = library and function() error("it cannot be changed", 2) end,
    __metatable = false,
  }
end

local callables = {
  error = {
    __call = function(_, message, level)
      return error(message, level == 0 and 0 or (level or 1) + 1)
    end,
    __metatable = false,
  },
  log = callable(native.info),
}

local log = setmetatable({}, callable(native.info, {info = native.info, warn = native.warn, error = native.fail}))

local string_utils = {
  split = native.split, trim = native.trim, contains = native.contains,
  starts_with = native.starts_with, ends_with = native.ends_with,
  lower = native.lowercase, upper = native.uppercase,
}
function string_utils.join(list, separator) return tables.concat(list, separator) end

local hash = {
  md5 = native.md5, sha1 = native.sha1, sha256 = native.sha256, hmac_sha256 = native.hmac_sha256,
  base64_encode = native.base64_encode, base64_decode = native.base64_decode, hex = native.hex,
}

-- Requests to other servers.
local http = {}

local function ask(method, url, headers, body, timeout)
  if headers ~= nil and type(headers) ~= "table" then error("http: headers is not a table", 3) end
  local status, fields, text = native.http(method, url, headers, body, timeout)
  return {status = status, headers = setmetatable(fields, native.header_names), body = text}
end

local function options_of(options)
  if options == nil then return {} end
  if type(options) ~= "table" then error("http: the options are not a table", 3) end
  return options
end

function http.get(url, options)
  options = options_of(options)
  return ask("GET", url, options.headers, nil, options.timeout)
end

function http.post(url, body, options)
  options = options_of(options)
  return ask("POST", url, options.headers, body, options.timeout)
end

function http.request(options)
  options = options_of(options)
  return ask(options.method or "GET", options.url, options.headers, options.body, options.timeout)
end

local base = {
  assert = assert, error = error, ipairs = ipairs, next = next, pairs = pairs, pcall = pcall,
  rawequal = rawequal, rawget = rawget, rawlen = rawlen, select = select,
  tonumber = tonumber, tostring = tostring, type = type, unpack = tables.unpack, _VERSION = _VERSION,
  string = frozen(strings, "string"), table = frozen(tables, "table"), math = frozen(maths, "math"),
  os = frozen({time = native.time, date = native.date, clock = os.clock, difftime = os.difftime}, "os"),
  json = frozen({encode = native.encode, decode = native.decode, null = native.null, array = native.array}, "json"),
  string_utils = frozen(string_utils, "string_utils"), hash = frozen(hash, "hash"),
  time = frozen({now = native.now, now_ms = native.now_ms, format = native.format_time, parse = native.parse_time}, "time"),
  store = frozen({
    get = native.store_get, set = native.store_set, incr = native.store_incr,
    expire = native.store_expire, delete = native.store_delete,
  }, "store"),
  env = frozen(function(_, name) return native.env(name) end, "env"),
  uuid = native.uuid, generate_uuid = native.uuid, now = native.now, now_ms = native.now_ms, log = log,
}

-- Errors that were raised in Rust become strings.
local function told(fine, ...)
  if fine then return true, ... end
  local error = ...
  if type(error) == "userdata" then error = native.told(error) end
  return false, error
end

function base.pcall(...) return told(pcall(...)) end

-- C would call the handler inside the hook that raised the error, where no hook runs.
function base.xpcall(call, handler, ...)
  local function finish(fine, ...)
    if fine then return true, ... end
    local _, told = pcall(handler, ...)
    return false, told
  end
  return finish(told(pcall(call, ...)))
end

-- The fields that a metatable may have. C follows chains of tables, closes and finalizes values, and
-- clears weak tables where no hook runs: these are not available. Metamethods are wrapped in a Lua
-- function, because a C function as a metamethod would run without a hook.
local functions = {
  "__add", "__sub", "__mul", "__div", "__mod", "__pow", "__unm", "__idiv", "__band", "__bor",
  "__bxor", "__bnot", "__shl", "__shr", "__concat", "__len", "__eq", "__lt", "__le", "__call",
  "__tostring", "__pairs",
}
local refused = {"__gc", "__mode", "__close", "__metatable"}
local original = {}

local function watched(call)
  return function(...) return call(...) end
end

function base.getmetatable(value)
  if type(value) ~= "table" then return nil end
  local meta = getmetatable(value)
  return meta and rawget(meta, original)
end

-- The metatable is copied, so that it cannot be changed later.
function base.setmetatable(t, meta)
  expect(t, "setmetatable")
  if getmetatable(t) == false then error("cannot change a protected metatable", 2) end
  if meta == nil then return setmetatable(t, nil) end
  if type(meta) ~= "table" then error("bad argument #2 to 'setmetatable' (nil or table expected)", 2) end
  for _, name in ipairs(refused) do
    if rawget(meta, name) ~= nil then error("'" .. name .. "' is not available", 2) end
  end
  local copy = {[original] = meta, __name = rawget(meta, "__name")}
  for _, name in ipairs(functions) do
    local call = rawget(meta, name)
    if call ~= nil then
      if type(call) ~= "function" then error("'" .. name .. "' is not a function", 2) end
      copy[name] = watched(call)
    end
  end
  for _, name in ipairs({"__index", "__newindex"}) do
    local value = rawget(meta, name)
    copy[name] = type(value) == "function" and watched(value) or value
  end
  return setmetatable(t, copy)
end

function base.rawset(t, name, value)
  if type(t) == "table" and getmetatable(t) == false then error("this table cannot be changed", 2) end
  return rawset(t, name, value)
end

local text = getmetatable("")
text.__index, text.__metatable = strings, false

-- Header names are not case-sensitive.
local headers = {
  __index = function(t, name)
    if type(name) == "string" then return rawget(t, native.canonical(name)) end
  end,
  __metatable = false,
}
native.header_names = headers

-- Modules: each has globals of its own, and its value is kept for the rest of the call.
local meta, loading, frozen_http = {__index = base, __metatable = false}, {}, frozen(http, "http")

function base.require(name)
  if type(name) ~= "string" then error("bad argument #1 to 'require' (string expected)", 2) end
  local loaded = native.loaded()
  local known = loaded[name]
  if known == loading then error("the module '" .. name .. "' requires itself, perhaps by way of others", 2) end
  if known ~= nil then return known end
  local module = native.module(name)
  local globals = setmetatable({}, meta)
  if native.may_use_http() then globals.http = frozen_http end
  loaded[name] = loading
  local fine, value = pcall(module, globals, name)
  if not fine then
    loaded[name] = nil
    error(value, 0)
  end
  if value == nil then value = true end
  loaded[name] = value
  return value
end

-- The globals of a script that sets none are an empty table, which every call can use: it shows the
-- call's inputs, and behind them the library. The first global that a script does set moves the inputs
-- into the table itself, which is then as any table of globals: what the script removes stays removed.
-- Afterwards the interpreter replaces the table.
local inputs = setmetatable({}, {__index = base, __metatable = false})
local only_read = {
  __index = inputs,
  __newindex = function(globals, name, value)
    for input, known in next, inputs do
      rawset(globals, input, known)
      inputs[input] = nil
    end
    rawset(globals, name, value)
  end,
  __metatable = false,
}

return {
  meta = meta, headers = headers, inputs = inputs, only_read = only_read, callables = callables,
  http = frozen_http,
}
