# A Perl program that calls Poolparty's serve: poolparty -c conf/languages/perl.py
#
# Dancer2, Mojolicious and whatever else is PSGI: psgi.py. Scripts that use CGI.pm: cgi.py.
worker_class = "poolparty.GWorker"

pool_cmd = "perl examples/app.pl"
# chdir = "/srv/app"

min_pool_size = 1
max_pool_size = 8

# Where the program's modules are (local::lib, Carton); the library's folder is added behind it.
# raw_env = ["PERL5LIB=/srv/app/local/lib/perl5"]
