# What a request shows of the adapter: routes, forms, uploads, cookies and sessions, templates, a stream, an error.

require "sinatra/base"

class App < Sinatra::Base
  set :environment, :production
  set :logging, false
  enable :sessions
  set :session_secret, ENV.fetch("SESSION_SECRET", "replace this: it signs the sessions of every process alike, " * 2)

  template(:page) { "<h1>Hello, <%= Rack::Utils.escape_html(name) %>!</h1>\n" }

  get("/") { "Hello from Sinatra!\n" }

  get("/hello/:name") { erb :page, locals: { name: params["name"] } }

  post("/form") { "Hello, #{params.fetch("name", "nobody")}!\n" }

  post("/upload") do
    file = params["file"]
    "#{file[:filename]}: #{file[:tempfile].size} bytes\n"
  end

  get("/count") do
    session[:count] = session.fetch(:count, 0) + 1
    "#{session[:count]}\n"
  end

  get("/cookies") do
    response.set_cookie("a", "1")
    response.set_cookie("b", value: "2", path: "/")
    request.cookies.sort.map { |name, value| "#{name}=#{value}" }.join(" ")
  end

  get("/stream") do
    stream do |out|
      3.times { |number| out << "line #{number}\n" }
    end
  end

  get("/error") { raise "this page always fails" }

  error { "something went wrong\n" }

  not_found { "no such page\n" }
end
