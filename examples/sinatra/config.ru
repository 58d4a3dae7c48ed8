# A Sinatra application (Debian: apt install ruby-sinatra):
#
#     poolparty --max-pool-size 4 -- ruby -rpoolparty/rack examples/sinatra/config.ru

require_relative "app"

run App
