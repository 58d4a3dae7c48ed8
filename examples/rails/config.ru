# A Rails application in one file (Debian: apt install ruby-railties):
#
#     poolparty --max-pool-size 4 --env RAILS_ENV=production -- ruby -rpoolparty/rack examples/rails/config.ru
#
# One that `rails new` made is served in the same way, by its own config.ru.

require_relative "app"

run App
