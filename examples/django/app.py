"""A Django application in one file (Debian: apt install python3-django):

poolparty --max-pool-size 4 --chdir examples/django -- python3 -m poolparty.wsgi app

A project that `django-admin startproject shop` made is served by `python3 -m poolparty.wsgi shop.wsgi`.
"""

import os

from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    # Without this, errors are mailed to nobody; with it they are in the server's log.
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": {"class": "logging.StreamHandler"}},
        "root": {"handlers": ["stderr"], "level": "ERROR"},
    },
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ.get("SECRET_KEY", "replace this: it signs what every process of the pool reads"),
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
)

from django.core.wsgi import get_wsgi_application  # noqa: E402  (Django reads the settings when it is imported)
from django.http import HttpResponse, StreamingHttpResponse  # noqa: E402
from django.template import engines  # noqa: E402
from django.urls import path  # noqa: E402
from django.views.decorators.csrf import csrf_exempt  # noqa: E402

PAGE = "<!doctype html>\n<title>Hello</title>\n<h1>Hello, {{ name }}!</h1>\n"


def text(body):
    return HttpResponse(body, content_type="text/plain; charset=utf-8")


def home(request):
    return text("Hello from Django!\n")


def hello(request, name):
    return HttpResponse(engines["django"].from_string(PAGE).render({"name": name}, request))


@csrf_exempt
def form(request):
    return text(f"Hello, {request.POST.get('name', 'nobody')}!\n")


@csrf_exempt
def upload(request):
    file = request.FILES["file"]
    return text(f"{file.name}: {file.size} bytes\n")


def stream(request):
    lines = (f"line {number} of {request.path}\n" for number in range(3))
    return StreamingHttpResponse(lines, content_type="text/plain")


def error(request):
    raise RuntimeError("this page always fails")


urlpatterns = [
    path("", home),
    path("hello/<name>", hello),
    path("form", form),
    path("upload", upload),
    path("stream", stream),
    path("error", error),
]
application = get_wsgi_application()
