# poolparty -c conf/minimal.py, or gunicorn -c conf/minimal.py
worker_class = "poolparty.GWorker"
pool_cmd = "python3 examples/app.py"
max_pool_size = 4
listen_address = "127.0.0.1:8080"
