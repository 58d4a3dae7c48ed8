# A program in Go that calls poolparty.Serve: poolparty -c conf/languages/go.py
#
# It is built first; `go run` does not pass the pipes on:
#     (cd examples && go build -o ../app app.go)
worker_class = "poolparty.GWorker"

pool_cmd = "./app"
# chdir = "/srv/app"

# Each child answers one request at a time: what can crash, leak or block ends with its process alone. A
# program that is safe to run many requests at once is faster with a server of its own.
min_pool_size = 1
max_pool_size = 8

# Goroutines of every child use every core, its garbage collector's too.
# raw_env = ["GOMAXPROCS=1", "GOMEMLIMIT=200MiB"]
