# A Python program that calls poolparty.serve(handler): poolparty -c conf/languages/python.py
#
# Flask and Django: wsgi.py. Starlette and FastAPI: asgi.py. Scripts for CGI: cgi.py.
worker_class = "poolparty.GWorker"

# The program's packages are those of the Python that is named here, which need not be the server's.
pool_cmd = "python3 examples/app.py"
# pool_cmd = "/srv/app/.venv/bin/python app.py"
# chdir = "/srv/app"

# Each child answers one request at a time and has an interpreter lock of its own. Where handlers compute, one
# for each core is enough; where they wait, for a database say, several times as many.
min_pool_size = 1
max_pool_size = 8

# A process that has grown beyond this is replaced after its request, when its successor is ready.
# worker_memory_limit = "512M"
