# A Lua program that calls poolparty.serve(handler): poolparty -c conf/languages/lua.py
# Lua 5.1 to 5.4 and LuaJIT; name the one whose modules the program needs.
worker_class = "poolparty.GWorker"

pool_cmd = "lua5.4 examples/app.lua"
# pool_cmd = "luajit app.lua"
# chdir = "/srv/app"

min_pool_size = 1
max_pool_size = 8

# Where LuaRocks puts modules that are not installed for everybody: what `luarocks path` prints. The library
# is added behind them; an empty element (;;) stands for Lua's own folders.
# raw_env = [
#     "LUA_PATH=/srv/app/lua_modules/share/lua/5.4/?.lua;;",
#     "LUA_CPATH=/srv/app/lua_modules/lib/lua/5.4/?.so;;",
# ]
