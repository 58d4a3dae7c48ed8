# A PHP program that calls Poolparty\serve(): poolparty -c conf/languages/php.py
#
# Applications that stand under a web server otherwise (WordPress, Laravel, plain .php files): php-front.py.
worker_class = "poolparty.GWorker"

# The program is loaded once and answers many requests: what it keeps in variables stays. A database
# connection is opened once; what must not be seen by the next request has to be cleared.
pool_cmd = "php examples/app.php"
# pool_cmd = "php -d memory_limit=256M app.php"
# chdir = "/srv/app"

min_pool_size = 1
max_pool_size = 8
