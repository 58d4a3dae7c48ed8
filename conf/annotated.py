# Every option of Poolparty with its default, and those of gunicorn a server is likely to want.
# Copy it and uncomment what you change.
#
# Made by `python -m poolparty.settings --annotated > conf/annotated.py`.
#
#     poolparty -c poolparty.conf.py
#     gunicorn -c poolparty.conf.py

# Needed by the stock gunicorn command; poolparty knows it anyway.
worker_class = "poolparty.GWorker"

# The command whose processes answer the requests.
# pool_cmd = "python3 examples/app.py"

# The address to serve on: HOST:PORT, unix:PATH or fd://N.
# listen_address = "127.0.0.1:8080"

# The control socket, for poolparty-ctl and for whatever speaks to a Unix socket.
# ctl_socket = "./poolparty.sock"

# A group whose members may use the control socket too (mode 0660).
# ctl_socket_group = "operators"

# Where the status page, /health, /ready and /metrics are served: HOST:PORT or unix:PATH.
# admin_address = "127.0.0.1:8081"

# A path of the public listeners below which the same pages are served, without the buttons.
# admin_prefix = "/-/poolparty/"

# Where HAProxy's agent check is answered: HOST:PORT or unix:PATH.
# agent_address = "127.0.0.1:8082"

# A request that runs longer is logged while it runs, 0 for never.
# slowlog_timeout = "0"

# Give every request an X-Request-Id that has none from a trusted proxy.
# request_ids = False

# Write the access log as one JSON object a line, in place of `access_log_format`.
# access_log_json = False

# Children that are kept however little there is to do.
# min_pool_size = 1

# Children there may be at once, whatever the load.
# max_pool_size = 1

# Further pools, each with its own children, for requests to certain hosts or paths.
# pools = {"reports": {"routes": ["/reports", "reports.example.com/"], "max_pool_size": 2}}

# Children there may be at once in all `pools` together, 0 for the sum of their maxima.
# total_pool_size = 0

# Resident memory of all children together above which no pool grows, 0 for no limit.
# total_memory_limit = 0

# How long a request waits for a free child before one is started for it.
# worker_spawn_timeout = "50ms"

# How long a request waits for any child before it is answered 503.
# worker_rendezvous_timeout = "60s"

# How long a child may take for one request before it is ended and the request answered 504.
# worker_request_timeout = "60s"

# How long a child that has to end may take, from SIGTERM to SIGKILL.
# worker_request_grace = "5s"

# How long a child may go on with a streamed answer whose client has left; then it is ended.
# stream_cancel_timeout = "5s"

# How long to wait before a child that died without ever answering is started again.
# worker_restart_delay = "1s"

# How long a child may take from its start until it is ready for requests.
# worker_boot_timeout = "60s"

# How often a child with nothing to do is asked whether it is well.
# worker_health_check_interval = "120s"

# How long a child may take for a health check before it is ended and replaced.
# worker_health_check_timeout = "10s"

# How long the pool keeps children that the load no longer needs.
# worker_attrition_delay = "120s"

# How many children beyond the pool's size a rolling restart may start at a time.
# worker_restart_surge = 1

# Idle children kept beyond what the load needed lately.
# spare_workers = 0

# After how many answers a child is replaced, 0 for never.
# worker_max_requests = 0

# Up to how many answers more than worker_max_requests each child may give, chosen at its start.
# worker_max_requests_jitter = 0

# At what age a child is replaced, 0 for never.
# worker_max_age = "0"

# After how long without a request a child is replaced, 0 for never.
# worker_idle_timeout = "0"

# Above which resident memory a child is replaced after its request, 0 for never.
# worker_memory_limit = 0

# Above which resident memory a child is killed at once, 0 for never.
# worker_memory_kill = 0

# Children get no variable of the server's environment but those of worker_env_keep.
# worker_env_clear = False

# The variables that children keep where worker_env_clear is set.
# worker_env_keep = "PATH,LANG,LANGUAGE,LC_*,TZ,HOME,USER,LOGNAME,SHELL,TMPDIR"

# How much address space a child may have (RLIMIT_AS).
# worker_rlimit_as = "2G"

# How many files and sockets a child may have open (RLIMIT_NOFILE).
# worker_rlimit_nofile = 1024

# How much processor time a child may use in its whole life (RLIMIT_CPU), in whole seconds.
# worker_rlimit_cpu = "1h"

# How large a core dump a child may leave (RLIMIT_CORE), 0 for none.
# worker_rlimit_core = 0

# How much nicer than the server the children are, as the command nice counts.
# worker_nice = 0

# Children, and what they start, gain no rights by running a program (no_new_privs).
# worker_no_new_privs = False

# Which the kernel ends first when the machine is out of memory: from -1000 (never) to 1000.
# worker_oom_score_adj = 500

# Requests that may be written to one child at once, the one it runs included.
# pool_prefetch = 4

# How much of an answer is kept for a slow client before its child has to wait for it.
# response_buffer_size = 1048576

# How long a client may take to send one request, head and body, before it is answered 408.
# request_read_timeout = "60s"

# How long a client may take to receive one answer before its connection is closed.
# request_write_timeout = "60s"

# Requests that may wait for a child in one HTTP worker; one more is answered 503 at once.
# request_backlog = 1024

# The largest request body; a larger one is answered 413.
# max_request_body_size = 4194304

# Up to this size a request body is held in memory; a larger one goes to a file as it comes.
# request_spool_size = 1048576

# Where those files are made; by default where the system has its temporary files (TMPDIR).
# request_spool_dir = "/var/spool/app"

# A directory whose files are served below static_url_prefix, before any child is asked.
# static_root = "/srv/app/static"

# Where the files of static_root appear.
# static_url_prefix = "/static/"

# Send static files compressed to clients that can take it.
# static_compress = False

# Compress static files by gzip only.
# static_no_brotli = False

# Where the compressed copies of static files are kept that are made at first use.
# static_cache_dir = "/var/cache/poolparty"

# A directory whose files are sent for a child that names one in its answer.
# sendfile_root = "/srv/app/private"

# What is watched with gunicorn's `reload`: files and directories, separated by colons.
# reload_paths = ["app.py", "lib", "templates"]

# gunicorn's own.

# Addresses to serve on; `poolparty` serves on this one by default.
# bind = ["127.0.0.1:8080"]

# HTTP workers. One core moves some ten thousand requests a second; children need theirs too.
# workers = 1

# Open connections in one HTTP worker; gunicorn's own default is 1000.
# worker_connections = 10000

# Seconds an idle connection is kept; above the proxy's own, so that the proxy closes first.
# keepalive = 75

# Seconds a stop waits for running requests: worker_request_timeout plus 5 unless set.
# graceful_timeout = 65

# Bytes of a request line; a longer one is answered 414.
# limit_request_line = 4094

# Header fields of a request; more are answered 431.
# limit_request_fields = 100

# Bytes of one header field; a longer one is answered 431.
# limit_request_field_size = 8190

# Proxies whose word is taken on whether the client came by TLS.
# forwarded_allow_ips = "127.0.0.1,::1"

# A line for each answer: a file, or - for stdout. Off by default.
# accesslog = "-"

# Everything else, what children print included: a file, or - for stderr.
# errorlog = "-"

# debug, info, warning, error or critical.
# loglevel = "info"

# Serve TLS with this certificate.
# certfile = "/etc/ssl/certs/poolparty.pem"

# Its key, where it is not in the same file.
# keyfile = "/etc/ssl/private/poolparty.key"

# HTTP workers and children run as this user, when the server was started by root.
# user = "www-data"

# And as this group.
# group = "www-data"

# For the files that children make.
# umask = 0o022

# Where children start, and what relative paths are relative to.
# chdir = "/srv/app"

# Variables for the children's environment.
# raw_env = ["LANG=C.UTF-8"]

# A file for the master's process id.
# pidfile = "/run/poolparty.pid"

# Send the pool's figures there; docs/monitoring.md names them.
# statsd_host = "127.0.0.1:8125"
