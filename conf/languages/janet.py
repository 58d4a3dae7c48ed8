# A Janet program that calls (poolparty/serve handler): poolparty -c conf/languages/janet.py
worker_class = "poolparty.GWorker"
pool_cmd = "janet examples/app.janet"

# Each child answers one request at a time. Where handlers compute, one for each core is enough; where they
# wait, for a database say, several times as many.
min_pool_size = 1
max_pool_size = 8

# The library is found by JANET_PATH, behind the folders that Janet itself or this variable names: modules
# of a project's own tree (jpm -l) are found so. Janet before 1.37 takes it for one folder; the server then
# leaves it alone, and poolparty.janet has to stand beside the program (poolparty-ctl sdk --copy).
# raw_env = ["JANET_PATH=/srv/app/jpm_tree/lib"]
