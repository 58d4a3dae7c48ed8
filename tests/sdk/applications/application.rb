# What test_every_library.py asks of a library; the same in every language.

require "poolparty"

def health_check
  case ENV["TEST_HEALTH"]
  when "fail" then raise "no database"
  when "long" then raise "ü" * 5000
  end
end

def pieces(request)
  Enumerator.new do |pieces|
    pieces << "one\n" << "" << "\xff\n".b << "grün\n"
    raise "this one fails" if request.query_string == "fail"
  end
end

def more
  Enumerator.new do |pieces|
    loop { pieces << "more\n" }
  ensure
    puts "closed"
  end
end

# Runs until the file that the query names is there, and says where that begins.
def spin(request)
  puts "spins"
  nil until File.exist?(request.query_string)
  "stopped"
end

ROUTES = {
  "/echo" => lambda do |request|
    headers = {
      "Method" => request.request_method, "Uri" => request.uri, "Path" => request.path,
      "Query" => request.query_string, "Remote-Address" => request.remote_address,
      "Headers" => request.headers.count.to_s
    }
    [201, headers, request.body]
  end,
  "/header" => ->(request) { request.headers[request.query_string] || [404, {}, "none"] },
  "/text" => ->(_) { "grün\n" },
  "/octets" => ->(request) { (0..255).to_a.pack("C*") * (request.query_string.to_i / 256) },
  "/headers" => ->(_) { [200, { "Set-Cookie" => ["a=1", "b=2"], "X-Long" => "v" * 300 }, ""] },
  "/many-headers" => ->(_) { [200, 300.times.to_h { |number| ["X-#{number}", number.to_s] }, ""] },
  "/empty" => ->(_) { [204, nil, nil] },
  "/fail" => ->(_) { raise "this one fails" },
  "/bad-status" => ->(_) { [99, {}, ""] },
  "/bad-header" => ->(_) { [200, { "A" => {} }, ""] },
  "/bad-body" => ->(_) { [200, {}, 7] },
  "/bad-answer" => ->(_) {},
  "/say" => ->(request) { puts "seen #{request.path}"; "" },
  "/program" => ->(_) { `cat | wc -c; test -e /proc/self/fd/3 && echo 3 is open` },
  "/spin" => method(:spin),
  "/leave" => ->(_) { exit 7 },
  "/stream" => ->(request) { [200, { "Content-Type" => "text/plain" }, pieces(request)] },
  "/endless" => ->(_) { [200, {}, more] },
  "/stream-nothing" => ->(_) { [200, {}, [].each] },
  "/stream-fail-first" => ->(_) { [200, {}, Enumerator.new { raise "this one fails" }] }
}

Poolparty.serve(->(request) { ROUTES.fetch(request.path).call(request) }, health_check: method(:health_check))
