# CGI scripts, any executables: poolparty -c conf/languages/cgi.py, then /hello.cgi
worker_class = "poolparty.GWorker"

# A folder, whose executables are asked by name (/hello.cgi/path), or one script for every path. Each
# request starts a process of it, which a pool spares every other program; a script in a language that has a
# library gains much by it.
pool_cmd = "python3 -m poolparty.cgi examples/cgi"
# pool_cmd = "python3 -m poolparty.cgi /usr/lib/cgi-bin"

# At most so many scripts run at once.
min_pool_size = 1
max_pool_size = 4

# A script that runs longer is ended with all it has started, and the request answered 504.
worker_request_timeout = "30s"

# Scripts see no variable of the server's environment but these, and those of CGI.
worker_env_clear = True
worker_env_keep = "PATH,LANG,LC_*,TZ"
