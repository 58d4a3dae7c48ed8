# A Tcl program that calls poolparty::serve: poolparty -c conf/languages/tcl.py
worker_class = "poolparty.GWorker"

pool_cmd = "tclsh examples/app.tcl"
# chdir = "/srv/app"

min_pool_size = 1
max_pool_size = 8

# Tcl 8 reads scripts and files in the locale's encoding; under systemd and in containers there is often none.
raw_env = ["LANG=C.UTF-8"]
# raw_env = ["LANG=C.UTF-8", "TCLLIBPATH=/srv/app/lib"]  # packages of the program's own; the library is added
