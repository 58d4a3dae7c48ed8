# A Guile program that calls serve: poolparty -c conf/languages/guile.py
worker_class = "poolparty.GWorker"

pool_cmd = "guile examples/app.scm"
# chdir = "/srv/app"

min_pool_size = 1
max_pool_size = 8

# Guile compiles a program at its first start and keeps that in a cache, below the user's home unless this
# says where; a service whose user has no home is interpreted without it, and several times slower. Children
# that compile at the same time do the same work each: this is how long a start may take.
worker_boot_timeout = "120s"
raw_env = ["LANG=C.UTF-8"]
# raw_env = ["LANG=C.UTF-8", "XDG_CACHE_HOME=/var/cache/app", "GUILE_LOAD_PATH=/srv/app/modules:..."]
