# An ASGI application, Starlette's or FastAPI's: poolparty -c conf/languages/asgi.py
# The example needs Starlette (Debian: python3-starlette).
#
# Each child calls the application for one request at a time, and its event loop stands still between
# requests. That is for handlers that compute or block. One that awaits many slow things at once is better
# off in one process of uvicorn. WebSockets are refused.
worker_class = "poolparty.GWorker"

# As for WSGI: MODULE:NAME, MODULE:FACTORY() or FILE.py:NAME, with the packages of the Python that is named.
pool_cmd = "python3 -m poolparty.asgi examples/starlette/app.py:app"
# pool_cmd = "/srv/app/.venv/bin/python -m poolparty.asgi shop.main:app"
# chdir = "/srv/app"

min_pool_size = 1
max_pool_size = 8

# The lifespan's startup is done before a child is ready for requests; this is how long it may take.
# worker_boot_timeout = "60s"

# Where the application is not at the root of its host.
# raw_env = ["ROOT_PATH=/api"]
