# A WSGI application, Flask's or Django's: poolparty -c conf/languages/wsgi.py
# The example needs Flask (Debian: python3-flask).
worker_class = "poolparty.GWorker"

# MODULE:NAME, MODULE:FACTORY() or FILE.py:NAME; of a project that `django-admin startproject shop` made:
# shop.wsgi. The application's packages are those of the Python that is named here.
pool_cmd = "python3 -m poolparty.wsgi examples/flask/app.py:app"
# pool_cmd = "/srv/shop/.venv/bin/python -m poolparty.wsgi shop.wsgi"
# chdir = "/srv/shop"

# Each child has connections of its own to the database: at most this many in all.
min_pool_size = 1
max_pool_size = 8

# raw_env = [
#     "DJANGO_SETTINGS_MODULE=shop.settings",
#     "SCRIPT_NAME=/shop",  # where the application is not at the root of its host
# ]

# What `manage.py collectstatic` puts together, STATIC_ROOT and STATIC_URL in Django's settings.
# static_root = "/srv/shop/static"
# static_url_prefix = "/static/"
# static_compress = True

# Behind a proxy that speaks TLS: its X-Forwarded-Proto becomes wsgi.url_scheme.
# forwarded_allow_ips = "127.0.0.1,::1"

# Uploads beyond this are answered 413. Django's own limits are DATA_UPLOAD_MAX_MEMORY_SIZE, for all but
# files, and FILE_UPLOAD_MAX_MEMORY_SIZE, beyond which files go to the disk.
# max_request_body_size = 20 * 1024 * 1024
