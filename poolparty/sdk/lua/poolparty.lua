-- The worker library for Lua programs, 5.1 to 5.4 and LuaJIT, in Lua alone:
--
--     local poolparty = require "poolparty"
--     poolparty.serve(function(request) return "hello\n" end)
--
-- Runs in the child: requests arrive as frames on descriptor 0, answers leave on descriptor 3, stdout and stderr
-- are free for printing (docs/worker-protocol.md). README.md beside this file says what handlers get and give.

local poolparty = { _VERSION = "0.1.0" }

local HTTP_REQUEST, HEALTH_CHECK_REQUEST = 0, 1
local HTTP_RESPONSE, READY, HEALTH_REPLY = 0, 1, 2
local RESPONSE_START, RESPONSE_CHUNK, RESPONSE_END = 3, 4, 5

local MAX_FRAME_SIZE = 0x7fffffff
local MAX_MESSAGE_SIZE = 1000 -- of a health reply: a line of the log
local LARGE_BODY = 65536 -- from here on a second write is cheaper than joining head and body

local byte, char, sub, lower = string.byte, string.char, string.sub, string.lower
local type, tostring, pairs, ipairs = type, tostring, pairs, ipairs

-- ---- Encoding.

local ONE_BYTE = {}
for number = 0, 127 do
  ONE_BYTE[number] = char(number)
end

local function uint(number)
  local bytes = ""
  while number > 127 do
    local low = number % 128
    bytes = bytes .. char(low + 128)
    number = (number - low) / 128
  end
  return bytes .. char(number)
end

-- A health reply's message: not too long, and UTF-8, for which bytes that are not become "?".
local function message_text(bytes)
  if #bytes > MAX_MESSAGE_SIZE then
    bytes = sub(bytes, 1, MAX_MESSAGE_SIZE):gsub("[\192-\255][\128-\191]*$", "") -- may be cut in two
  end
  local rest = bytes
    :gsub("[\194-\223][\128-\191]", ".")
    :gsub("[\224-\239][\128-\191][\128-\191]", ".")
    :gsub("[\240-\244][\128-\191][\128-\191][\128-\191]", ".")
  return rest:find("[\128-\255]") and (bytes:gsub("[\128-\255]", "?")) or bytes
end

local function sized(bytes)
  return (ONE_BYTE[#bytes] or uint(#bytes)) .. bytes
end

-- A frame's first four bytes.
local function frame_size(size)
  if size > MAX_FRAME_SIZE then
    error(("a response of %d bytes is larger than a frame can be (%d)"):format(size, MAX_FRAME_SIZE), 0)
  end
  local low = size % 256
  local rest = (size - low) / 256
  local middle = rest % 256
  rest = (rest - middle) / 256
  local high = rest % 256
  return char(low, middle, high, (rest - high) / 256)
end

local function framed(payload)
  return frame_size(#payload) .. payload
end

-- A header's value as it is sent, or nil for what cannot be one.
local function field_text(value)
  if type(value) == "string" then
    return value
  elseif type(value) == "number" then
    return tostring(value)
  end
end

-- What precedes the body in both kinds of response: status and headers.
local function encode_head(tag, status, headers)
  if status == nil then
    status = 200
  elseif type(status) ~= "number" or status < 200 or status > 599 or status % 1 ~= 0 then
    error("a response's status is an integer from 200 to 599, not " .. tostring(status), 0)
  end
  local pieces, count = { "" }, 0
  if headers ~= nil then
    if type(headers) ~= "table" then
      error("a response's headers are a table, not " .. tostring(headers), 0)
    end
    for name, value in pairs(headers) do
      if type(name) ~= "string" then
        error("a response header's name is a string, not " .. tostring(name), 0)
      end
      local values = value
      if type(value) ~= "table" then
        values = { value }
      end
      pieces[#pieces + 1] = sized(name) .. uint(#values)
      for _, each in ipairs(values) do
        local text = field_text(each)
        if not text then
          error(("the response header %q is a string or a list of strings, not %s"):format(name, tostring(each)), 0)
        end
        pieces[#pieces + 1] = sized(text)
      end
      count = count + 1
    end
  end
  pieces[1] = char(tag) .. uint(status) .. uint(count)
  return table.concat(pieces)
end

local TEXT = encode_head(HTTP_RESPONSE, 200, { ["Content-Type"] = "text/plain; charset=utf-8" })
local FAILURE = framed(
  encode_head(HTTP_RESPONSE, 500, { ["Content-Type"] = "text/plain; charset=utf-8" })
    .. sized("internal server error\n")
)

-- ---- Decoding.

local function broken(what)
  io.stderr:write("poolparty: ", what, "\n")
  os.exit(1)
end

-- The uint at `at`, and the place behind it. More than five bytes are a length beyond any frame.
local function read_uint(payload, at)
  local number, scale = 0, 1
  for here = at, at + 4 do
    local low = byte(payload, here)
    if not low then
      break
    elseif low < 128 then
      return number + low * scale, here + 1
    end
    number = number + (low - 128) * scale
    scale = scale * 128
  end
  broken("a request with a length that points beyond its frame")
end

local function read_bytes(payload, at)
  local size = byte(payload, at)
  if size and size < 128 then
    at = at + 1
  else
    size, at = read_uint(payload, at)
  end
  return sub(payload, at, at + size - 1), at + size
end

-- Looking up a field that is not there under this very name: names are compared without regard to case.
local headers_lookup = {
  __index = function(headers, wanted)
    if type(wanted) == "string" then
      wanted = lower(wanted)
      for name, value in pairs(headers) do
        if lower(name) == wanted then
          return value
        end
      end
    end
  end,
}

local function read_request(payload)
  local request, headers, at, count, name = {}, {}, 2, nil, nil
  request.remote_address, at = read_bytes(payload, at)
  local uri
  uri, at = read_bytes(payload, at)
  request.method, at = read_bytes(payload, at)
  count, at = read_uint(payload, at)
  for _ = 1, count do
    name, at = read_bytes(payload, at)
    headers[name], at = read_bytes(payload, at)
  end
  request.body, at = read_bytes(payload, at)
  if at ~= #payload + 1 then
    broken("a request whose lengths do not add up to its frame's")
  end
  request.uri = uri
  request.headers = setmetatable(headers, headers_lookup)
  local target, query = uri:match("^([^?]*)%??(.*)$")
  request.path, request.query = target:match("^%a[%w+.-]*://[^/]*(.*)$") or target, query
  if request.path == "" then
    request.path = "/"
  end
  return request
end

-- ---- The process.

-- Opened so that programs do not inherit it, where Lua takes the C library's "e" (5.1, LuaJIT).
local function open_aside(path, mode)
  local ok, file, reason = pcall(io.open, path, mode .. "e")
  if ok then
    return file, reason
  end
  return io.open(path, mode)
end

-- Lua cannot mark a descriptor as not to be inherited, and a program started by a handler would eat our requests: so
-- the two functions that start programs, both by a shell, have the shell put the pipes aside. Our second way into
-- the answers' pipe has one of the next numbers.
local ASIDE = "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-\n"
local NO_INPUT = "exec </dev/null\n"

-- The two pipes, as files.
local function take_pipes()
  local requests = io.stdin
  local answers, reason = open_aside("/dev/fd/3", "wb")
  if not answers then
    error("poolparty.serve: unable to open descriptor 3 (" .. tostring(reason)
      .. "): this program is started by the server, poolparty -- lua app.lua", 0)
  end
  answers:setvbuf("no") -- each write is a response
  local nothing = assert(open_aside("/dev/null", "rb"))
  io.input(nothing)
  io.stdin = nothing

  local execute, popen = os.execute, io.popen
  function os.execute(command)
    return execute(command and ASIDE .. NO_INPUT .. command)
  end
  function io.popen(command, mode)
    local writes = type(mode) == "string" and mode:find("w", 1, true)
    return popen(ASIDE .. (writes and "" or NO_INPUT) .. command, mode or "r")
  end
  return requests, answers
end

-- A terminal's Ctrl-C is for the server, which then drains. Lua has no signals, but LuaJIT reaches C's: a handler that
-- does nothing, since to ignore the signal would be inherited by programs. abs() is one, taking a number as it does.
local function take_interrupts()
  local ok, ffi = pcall(require, "ffi")
  if ok then
    pcall(ffi.cdef, "int abs(int); void (*signal(int, void (*)(int)))(int);")
    pcall(function() ffi.C.signal(2, ffi.cast("void (*)(int)", ffi.C.abs)) end)
  end
end

local function offered_features()
  local offered = {}
  for feature in (os.getenv("POOLPARTY_FEATURES") or ""):gmatch("[^,]+") do
    offered[feature] = true
  end
  return offered
end

-- For xpcall: the error as text, with the trace of where it happened.
local function with_trace(message)
  return debug.traceback(type(message) == "string" and message or tostring(message), 2)
end

local function report(what, trace)
  io.stderr:write("poolparty: ", what, "\n", tostring(trace), "\n")
end

--- Answer requests with handler(request) until the server closes the pipe; then return.
-- health_check(), if given, is called now and then while no request runs: if it raises an error, this process is
-- unwell and will be replaced.
function poolparty.serve(handler, health_check)
  local requests, answers = take_pipes()
  take_interrupts()
  io.stdout:setvbuf("line")
  local offered = offered_features()
  local says_ready = offered.ready
  local replies = says_ready and offered["health-reply"]
  local streams = says_ready and offered.stream

  -- False when the server has gone.
  local function write(bytes, more)
    return answers:write(bytes) and (not more or answers:write(more))
  end

  -- The chunks of a body that is a function: it is called until it returns nil. Empty ones say nothing.
  local function next_chunk(body)
    local chunk
    repeat
      chunk = body()
      if chunk ~= nil and type(chunk) ~= "string" then
        error("a response's body function returns strings, not " .. tostring(chunk), 0)
      end
    until chunk ~= ""
    return chunk
  end

  local request, streaming, connected -- of the request that is being answered

  local function stream(status, headers, body, chunk)
    local start = framed(encode_head(RESPONSE_START, status, headers))
    streaming = true
    connected = write(start)
    while connected and chunk do
      local head = char(RESPONSE_CHUNK) .. uint(#chunk)
      connected = write(frame_size(#head + #chunk) .. head, chunk)
      chunk = next_chunk(body)
    end
    connected = connected and write(framed(char(RESPONSE_END)))
    streaming = false
  end

  local function respond()
    local response = handler(request)
    local head, body
    if type(response) == "string" then
      head, body = TEXT, response
    elseif type(response) == "table" then
      body = response.body
      if type(body) == "function" then
        -- The first chunk comes before the head: what fails until then can still be answered 500.
        local chunk = next_chunk(body)
        if streams and chunk then
          return stream(response.status, response.headers, body, chunk)
        end
        local chunks = {}
        while chunk do
          chunks[#chunks + 1] = chunk
          chunk = next_chunk(body)
        end
        body = table.concat(chunks)
      elseif body == nil then
        body = ""
      elseif type(body) == "number" then
        body = tostring(body)
      elseif type(body) ~= "string" then
        error("a response's body is a string or a function, not " .. tostring(body), 0)
      end
      head = encode_head(HTTP_RESPONSE, response.status, response.headers)
    else
      error("a handler returns a string or a table, not " .. tostring(response), 0)
    end
    local size = #body
    head = head .. (ONE_BYTE[size] or uint(size))
    local start = frame_size(#head + size) .. head
    if size < LARGE_BODY then
      connected = write(start .. body)
    else
      connected = write(start, body)
    end
  end

  local function check_health()
    local ok, trace, message = true, nil, ""
    if health_check then
      ok, trace = xpcall(health_check, function(reason)
        message = tostring(reason)
        return with_trace(reason)
      end)
    end
    if not ok then
      report("the health check failed", trace)
      if not replies then
        os.exit(1)
      end
    end
    if replies then
      return write(framed(char(HEALTH_REPLY, ok and 1 or 0) .. sized(message_text(message))))
    end
    return true
  end

  if says_ready then
    local features = {}
    if replies then
      features[#features + 1] = sized("health-reply")
    end
    if streams then
      features[#features + 1] = sized("stream")
    end
    write(framed(char(READY, #features) .. table.concat(features)))
  end
  while true do
    local size = requests:read(4)
    if not size or #size < 4 then
      return
    end
    local low, middle, high, highest = byte(size, 1, 4)
    size = low + 256 * (middle + 256 * (high + 256 * highest))
    if size == 0 then
      broken("an empty frame")
    end
    local payload = requests:read(size)
    if not payload or #payload < size then
      return
    end
    local tag = byte(payload)
    if tag == HTTP_REQUEST then
      request = read_request(payload)
      local ok, trace = xpcall(respond, with_trace)
      if not ok then
        report(("%s %q failed"):format(request.method, request.uri), trace)
        if streaming then
          os.exit(1) -- half of an answer must not pass for a whole one
        end
        connected = write(FAILURE)
      end
      if not connected then
        return
      end
    elseif tag == HEALTH_CHECK_REQUEST and size == 1 then
      if not check_health() then
        return
      end
    else
      broken(("a request of a kind this library does not know (%d)"):format(tag))
    end
  end
end

return poolparty
