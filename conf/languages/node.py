# A Node program that calls poolparty.serve: poolparty -c conf/languages/node.py
#
# An Express or Koa application is one, by serve(poolparty.http(app)) in place of app.listen():
# examples/express/app.js.
worker_class = "poolparty.GWorker"

# node itself and not `npm start`, which would stand between the server and the program.
pool_cmd = "node examples/app.js"
# pool_cmd = "node --max-old-space-size=256 app.js"
# chdir = "/srv/app"

# Each child answers one request at a time, so that one that computes holds up nobody else. Handlers that wait
# need as many children as there are requests under way.
min_pool_size = 1
max_pool_size = 16

raw_env = ["NODE_ENV=production"]

# A little above --max-old-space-size: a process that has grown beyond this is replaced after its request.
# worker_memory_limit = "384M"
