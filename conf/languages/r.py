# An R program that calls poolparty::serve: poolparty -c conf/languages/r.py
#
# Routes as the package plumber has them:
# pool_cmd = ["Rscript", "-e", 'poolparty::serve(poolparty::plumb("plumber.R"))']
worker_class = "poolparty.GWorker"

pool_cmd = "Rscript examples/app.R"
# chdir = "/srv/app"

# A process is slow to start, and large once its packages are loaded: keep as many as are usually needed, and
# one more ready.
min_pool_size = 2
max_pool_size = 4
spare_workers = 1
worker_boot_timeout = "120s"

# A model takes its time. The request is answered 504 and its process replaced behind this.
worker_request_timeout = "120s"

raw_env = [
    "LANG=C.UTF-8",  # or texts beyond ASCII are not understood
    "OMP_NUM_THREADS=1",  # each process would otherwise use every core for its matrices
    "OPENBLAS_NUM_THREADS=1",
    # "R_LIBS=/srv/app/library",  # packages of the program's own; the library is added
]

# R gives memory back late: a process that has grown beyond this is replaced after its request.
# worker_memory_limit = "2G"
