-- The echo application of docs/writing-a-worker.md, for `poolparty-ctl check --echo`.

local poolparty = require "poolparty"

poolparty.serve(function(request)
  if request.path == "/fail" then
    error("this page always fails")
  elseif request.path == "/print" then
    print("printed")
  elseif request.path == "/stream" then
    local pieces, at = { "one\n", "two\n", "three\n" }, 0
    return {
      body = function()
        at = at + 1
        return pieces[at]
      end,
    }
  end
  local headers = {}
  for name, value in pairs(request.headers) do
    headers[#headers + 1] = name .. ": " .. value
  end
  return {
    headers = {
      ["Echo-Method"] = request.method,
      ["Echo-Uri"] = request.uri,
      ["Echo-Remote-Address"] = request.remote_address,
      ["Echo-Check"] = request.headers["x-check"] or "",
      ["Echo-Headers"] = headers,
    },
    body = request.body,
  }
end)
