# What a request shows of the adapter: routes, forms, uploads, cookies and sessions, templates, a stream, an error.

require "rails"
require "action_controller/railtie"
require "action_view/railtie"

class App < Rails::Application
  config.load_defaults Rails::VERSION::STRING.to_f
  config.eager_load = true
  config.consider_all_requests_local = false
  config.secret_key_base = ENV.fetch("SECRET_KEY_BASE", "replace this: it signs the sessions of every process alike")
  config.logger = ActiveSupport::Logger.new($stdout)
  config.log_level = :warn
  config.hosts.clear
  config.session_store :cookie_store, key: "session"

  routes.append do
    root to: "pages#home"
    get "/hello/:name", to: "pages#hello"
    post "/form", to: "pages#form"
    post "/upload", to: "pages#upload"
    get "/count", to: "pages#count"
    get "/stream", to: "pages#stream"
    get "/error", to: "pages#error"
  end
end

App.initialize!

class PagesController < ActionController::Base
  skip_forgery_protection

  def home = render(plain: "Hello from Rails!\n")

  def hello = render(inline: "<h1>Hello, <%= params[:name] %>!</h1>\n")

  def form = render(plain: "Hello, #{params.fetch(:name, "nobody")}!\n")

  def upload
    file = params.require(:file)
    render plain: "#{file.original_filename}: #{file.size} bytes\n"
  end

  def count
    session[:count] = session.fetch(:count, 0) + 1
    render plain: "#{session[:count]}\n"
  end

  def stream
    headers["Content-Type"] = "text/plain"
    headers["Last-Modified"] = Time.now.httpdate # or Rack::ETag waits for its end
    self.response_body = Enumerator.new { |out| 3.times { |number| out << "line #{number}\n" } }
  end

  def error = raise("this page always fails")
end
