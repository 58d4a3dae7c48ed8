-- What test_every_library.py asks of a library; the same in every language.

local poolparty = require "poolparty"

local function health_check()
  local health = os.getenv("TEST_HEALTH")
  if health == "fail" then
    error("no database")
  elseif health == "long" then
    error(("\195\188"):rep(5000))
  end
end

local function pieces(request)
  local list, at = { "one\n", "", "\255\n", "gr\195\188n\n" }, 0
  return function()
    at = at + 1
    if at > #list and request.query == "fail" then
      error("this one fails")
    end
    return list[at]
  end
end

local function all_bytes()
  local bytes = {}
  for number = 0, 255 do
    bytes[number + 1] = string.char(number)
  end
  return table.concat(bytes)
end

local function many_headers()
  local headers = {}
  for number = 0, 299 do
    headers["X-" .. number] = number
  end
  return headers
end

local routes = {
  ["/echo"] = function(request)
    local count = 0
    for _ in pairs(request.headers) do
      count = count + 1
    end
    return {
      status = 201,
      headers = {
        ["Method"] = request.method, ["Uri"] = request.uri, ["Path"] = request.path, ["Query"] = request.query,
        ["Remote-Address"] = request.remote_address, ["Headers"] = count,
      },
      body = request.body,
    }
  end,
  ["/header"] = function(request)
    return request.headers[request.query] or { status = 404, body = "none" }
  end,
  ["/text"] = function() return "gr\195\188n\n" end,
  ["/octets"] = function(request)
    return {
      headers = { ["Content-Type"] = "application/octet-stream" },
      body = all_bytes():rep(math.floor(tonumber(request.query) / 256)),
    }
  end,
  ["/headers"] = function()
    return { headers = { ["Set-Cookie"] = { "a=1", "b=2" }, ["X-Long"] = ("v"):rep(300) }, body = "" }
  end,
  ["/many-headers"] = function() return { headers = many_headers() } end,
  ["/empty"] = function() return { status = 204 } end,
  ["/fail"] = function() error("this one fails") end,
  ["/bad-status"] = function() return { status = 99 } end,
  ["/bad-header"] = function() return { headers = { A = { {} } } } end,
  ["/bad-body"] = function() return { body = {} } end,
  ["/bad-answer"] = function() end,
  ["/say"] = function(request)
    print("seen " .. request.path)
    return ""
  end,
  ["/program"] = function()
    local program = io.popen("cat | wc -c; test -e /proc/self/fd/3 && echo 3 is open")
    local said = program:read("*a")
    program:close()
    return said
  end,
  ["/leave"] = function() os.exit(7) end,
  ["/stream"] = function(request)
    return { headers = { ["Content-Type"] = "text/plain" }, body = pieces(request) }
  end,
  ["/stream-nothing"] = function() return { body = function() end } end,
  ["/stream-fail-first"] = function() return { body = function() error("this one fails") end } end,
}

poolparty.serve(function(request) return routes[request.path](request) end, health_check)
