# Three pools in one server; docs/pools.md says more.
#
#     poolparty -c conf/pools.py
worker_class = "poolparty.GWorker"
listen_address = "127.0.0.1:8080"

# The pool `default`: what no route names goes to it.
pool_cmd = "python3 examples/app.py"
max_pool_size = 4

pools = {
    # The same program: a child kept free for whoever asks whether it is well.
    "health": {"routes": ["/health"], "max_pool_size": 1},
    # What takes long, apart from what must not wait for it.
    "reports": {
        "routes": ["/reports", "reports.example.com/"],
        "min_pool_size": 0,
        "max_pool_size": 2,
        "worker_request_timeout": "5m",
        "worker_nice": 5,
    },
}

# Of all three together.
total_pool_size = 6
