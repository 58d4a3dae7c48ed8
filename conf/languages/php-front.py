# A PHP application as it is, a front controller or a folder: poolparty -c conf/languages/php-front.py
# Needs php-cgi beside php (Debian: php-cgi).
worker_class = "poolparty.GWorker"

# php-cgi's settings are those of php.ini for "cgi", and what is given by -d behind the script or folder.
pool_cmd = """php -r 'require "poolparty/cgi.php";' examples/php-front/index.php"""
# pool_cmd = """php -r 'require "poolparty/cgi.php";' public -d upload_max_filesize=9M -d post_max_size=9M"""
# chdir = "/srv/app"

# What pm.max_children and pm.max_requests are in PHP-FPM.
min_pool_size = 1
max_pool_size = 8
worker_max_requests = 1000
worker_max_requests_jitter = 100

# Not smaller than upload_max_filesize and post_max_size.
# max_request_body_size = 9 * 1024 * 1024

# The server sends these files itself; .php files must not be among them, since it would send their source.
# static_root = "/srv/app/public/assets"
# static_url_prefix = "/assets/"
