# A PSGI application, Dancer2's or Mojolicious': poolparty -c conf/languages/psgi.py
# The example needs Dancer2 (Debian: libdancer2-perl). Plack itself is not needed.
worker_class = "poolparty.GWorker"

pool_cmd = "perl -MPoolparty::PSGI -e run examples/dancer2/app.psgi"
# pool_cmd = "perl -MPoolparty::PSGI -e run app.psgi"
# chdir = "/srv/app"

# Sessions in a process's memory are not seen by the other children: take a kind that keeps them in files, in
# cookies or in a database.
min_pool_size = 1
max_pool_size = 8

# Dancer2's name for it; Mojolicious has MOJO_MODE, others PLACK_ENV.
raw_env = ["DANCER_ENVIRONMENT=production"]
# raw_env = ["MOJO_MODE=production", "PERL5LIB=/srv/app/local/lib/perl5"]
