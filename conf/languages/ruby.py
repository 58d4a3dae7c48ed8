# A Ruby program that calls Poolparty.serve: poolparty -c conf/languages/ruby.py
#
# Sinatra, Rails and whatever else has a config.ru: rack.py.
worker_class = "poolparty.GWorker"

pool_cmd = "ruby examples/app.rb"
# pool_cmd = "bundle exec ruby app.rb"  # with the gems of the Gemfile in chdir
# chdir = "/srv/app"

min_pool_size = 1
max_pool_size = 8

# A process that has grown beyond this is replaced after its request, when its successor is ready.
# worker_memory_limit = "512M"
