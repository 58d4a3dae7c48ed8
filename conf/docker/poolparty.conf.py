# For a container: what changes from one place to another comes from its environment.
import os

listen_address = "0.0.0.0:8080"
# Health, readiness and metrics. On this address it shows and does nothing; do not publish the port.
admin_address = "0.0.0.0:8081"

max_pool_size = int(os.environ.get("MAX_POOL_SIZE", "4"))
min_pool_size = int(os.environ.get("MIN_POOL_SIZE", "1"))
workers = int(os.environ.get("HTTP_WORKERS", "1"))
worker_request_timeout = os.environ.get("WORKER_REQUEST_TIMEOUT", "60s")

# The root file system may be read-only: these two are in memory.
ctl_socket = "/run/poolparty/poolparty.sock"
worker_tmp_dir = "/dev/shm"

# Proxies whose word is taken on the client's address and on TLS; by default none.
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1,::1")

accesslog = "-"
access_log_json = True
worker_no_new_privs = True
