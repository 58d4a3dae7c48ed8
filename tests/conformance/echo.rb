# The echo application of docs/writing-a-worker.md, for `poolparty-ctl check --echo`.

require "poolparty"

Poolparty.serve(lambda do |request|
  case request.path
  when "/fail" then raise "this page always fails"
  when "/print" then puts "printed"
  when "/stream" then next [200, {}, %W[one\n two\n three\n].each]
  when "/endless" then next [200, {}, ["more\n"].cycle]
  end
  headers = {
    "Echo-Method" => request.request_method,
    "Echo-Uri" => request.uri,
    "Echo-Remote-Address" => request.remote_address,
    "Echo-Check" => request.headers["x-check"] || "",
    "Echo-Headers" => request.headers.map { |name, value| "#{name}: #{value}" }
  }
  [200, headers, request.body]
end)
