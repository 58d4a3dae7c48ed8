-- A small application: poolparty --max-pool-size 8 -- lua examples/app.lua
--
-- The same as app.py, answer for answer. Runs on Lua 5.1 to 5.4 and LuaJIT.

local poolparty = require "poolparty"

local FORM = [[
<!doctype html>
<meta charset="utf-8">
<title>A form</title>
<form method="post" action="/form">
<label>Your name <input name="name"></label>
<button>Send</button>
</form>
]]

local PAGE = [[
<!doctype html>
<meta charset="utf-8">
<title>A page</title>
<h1>Hello, $name!</h1>
<ul>
$items</ul>
]]

local function page(body)
  return { headers = { ["Content-Type"] = "text/html; charset=utf-8" }, body = body }
end

local ENTITIES = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#x27;" }

local function escape(text)
  return (text:gsub("[&<>\"']", ENTITIES))
end

local function unescape(text)
  return (text:gsub("+", " "):gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

-- The fields of a form or a query, name=value&…; of a repeated one the first.
local function decode(encoded)
  local fields = {}
  for name, value in encoded:gmatch("([^&=]+)=?([^&]*)") do
    name = unescape(name)
    fields[name] = fields[name] or unescape(value)
  end
  return fields
end

-- Strings and tables of them as JSON, in the order of their names.
local function json(value)
  if type(value) == "string" then
    return '"' .. value:gsub('[%c"\\]', function(c)
      return (c == '"' or c == "\\") and "\\" .. c or ("\\u%04x"):format(c:byte())
    end) .. '"'
  end
  local names, pieces = {}, {}
  for name in pairs(value) do
    names[#names + 1] = name
  end
  table.sort(names)
  for _, name in ipairs(names) do
    pieces[#pieces + 1] = json(name) .. ": " .. json(value[name])
  end
  return "{" .. table.concat(pieces, ", ") .. "}"
end

local routes = {}

routes["/"] = function()
  return "Hello from Lua!\n"
end

routes["/json"] = function(request)
  local facts = { method = request.method, path = request.path, query = request.query, headers = request.headers }
  return { headers = { ["Content-Type"] = "application/json" }, body = json(facts) .. "\n" }
end

routes["/form"] = function(request)
  if request.method ~= "POST" then
    return page(FORM)
  end
  local name = decode(request.body).name or "nobody"
  return page(('<!doctype html>\n<meta charset="utf-8">\n<p>Hello, %s!</p>\n'):format(escape(name)))
end

routes["/page"] = function(request)
  local items = ""
  for number = 1, 3 do
    items = items .. ("<li>%d times %d is %d</li>\n"):format(number, number, number * number)
  end
  local name = escape(decode(request.query).name or "nobody")
  return page((PAGE:gsub("$(%a+)", { name = name, items = items })))
end

routes["/upload"] = function(request)
  return #request.body .. " bytes\n"
end

routes["/slow"] = function(request)
  local milliseconds = math.floor(tonumber(decode(request.query).ms or "100"))
  -- Lua itself cannot sleep.
  os.execute(("sleep %.3f"):format(milliseconds / 1000))
  return ("waited %d ms\n"):format(milliseconds)
end

routes["/error"] = function()
  error("this page always fails")
end

poolparty.serve(function(request)
  local route = routes[request.path]
  if not route then
    return { status = 404, headers = { ["Content-Type"] = "text/plain; charset=utf-8" }, body = "not found\n" }
  end
  return route(request)
end)
