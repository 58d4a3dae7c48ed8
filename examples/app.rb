# A small application: poolparty --max-pool-size 8 -- ruby examples/app.rb
#
# The same application as the others of this folder, in Ruby.

require "cgi"
require "erb"
require "json"
require "poolparty"
require "uri"

FORM = <<~HTML
  <!doctype html>
  <meta charset="utf-8">
  <title>A form</title>
  <form method="post" action="/form">
  <label>Your name <input name="name"></label>
  <button>Send</button>
  </form>
HTML

PAGE = ERB.new(<<~HTML, trim_mode: "-")
  <!doctype html>
  <meta charset="utf-8">
  <title>A page</title>
  <h1>Hello, <%= CGI.escapeHTML(name) %>!</h1>
  <ul>
  <%- [1, 2, 3].each do |number| -%>
  <li><%= number %> times <%= number %> is <%= number * number %></li>
  <%- end -%>
  </ul>
HTML

# The fields of a form or a query, the first of each name.
def fields(encoded)
  URI.decode_www_form(encoded).reverse.to_h
end

def page(body)
  [200, { "Content-Type" => "text/html; charset=utf-8" }, body]
end

def home(_request)
  "Hello from Ruby!\n"
end

def json(request)
  facts = {
    method: request.request_method,
    path: request.path,
    query: request.query_string,
    headers: request.headers.to_h
  }
  [200, { "Content-Type" => "application/json" }, JSON.generate(facts) + "\n"]
end

def form(request)
  return page(FORM) unless request.request_method == "POST"

  name = fields(request.body).fetch("name", "nobody")
  page(%(<!doctype html>\n<meta charset="utf-8">\n<p>Hello, #{CGI.escapeHTML(name)}!</p>\n))
end

def template(request)
  page(PAGE.result_with_hash(name: fields(request.query_string).fetch("name", "nobody")))
end

def upload(request)
  "#{request.body.bytesize} bytes\n"
end

def slow(request)
  milliseconds = Integer(fields(request.query_string).fetch("ms", "100"))
  sleep(milliseconds / 1000.0)
  "waited #{milliseconds} ms\n"
end

def error(_request)
  raise "this page always fails"
end

ROUTES = {
  "/" => :home, "/json" => :json, "/form" => :form, "/page" => :template, "/upload" => :upload, "/slow" => :slow,
  "/error" => :error
}.freeze

Poolparty.serve do |request|
  route = ROUTES[request.path]
  route ? send(route, request) : [404, { "Content-Type" => "text/plain; charset=utf-8" }, "not found\n"]
end
