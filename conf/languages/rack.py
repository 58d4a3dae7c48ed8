# A Rack application, Sinatra's or Rails': poolparty -c conf/languages/rack.py
# The example needs Sinatra (Debian: ruby-sinatra); examples/rails is one of Rails (ruby-railties). No server
# gem (puma, unicorn) is needed.
worker_class = "poolparty.GWorker"

pool_cmd = "ruby -rpoolparty/rack examples/sinatra/config.ru"
# pool_cmd = "bundle exec ruby -rpoolparty/rack config.ru"
# chdir = "/srv/shop"

# An application is never called by two threads at once. Each child has connections of its own to the database
# (in Rails `pool: 1` is enough): at most this many in all.
min_pool_size = 1
max_pool_size = 8

# Rails reads RAILS_ENV, and SECRET_KEY_BASE unless there is a master key. What it logs to its standard
# output is in the server's error log.
raw_env = ["RACK_ENV=production"]
# raw_env = ["RAILS_ENV=production", "RAILS_LOG_TO_STDOUT=1"]

# What `rails assets:precompile` makes; the server sends it, and Rails is not asked.
# static_root = "/srv/shop/public/assets"
# static_url_prefix = "/assets/"

# A large application takes its time to load; a restart waits for it, and replaces nobody before it is ready.
# worker_boot_timeout = "120s"
# worker_memory_limit = "1G"
