"""A small application: poolparty --max-pool-size 8 -- python examples/app.py

The same application as the others of this folder, in Python.
"""

import html
import json
import string
import time
import urllib.parse

import poolparty

FORM = """<!doctype html>
<meta charset="utf-8">
<title>A form</title>
<form method="post" action="/form">
<label>Your name <input name="name"></label>
<button>Send</button>
</form>
"""


PAGE = string.Template("""<!doctype html>
<meta charset="utf-8">
<title>A page</title>
<h1>Hello, $name!</h1>
<ul>
$items</ul>
""")


def home(request):
    return "Hello from Python!\n"


def as_json(request):
    facts = {
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "headers": dict(request.headers),
    }
    return {"headers": {"Content-Type": "application/json"}, "body": json.dumps(facts, sort_keys=True) + "\n"}


def form(request):
    if request.method != "POST":
        return page(FORM)
    fields = urllib.parse.parse_qs(request.body.decode())
    name = fields.get("name", ["nobody"])[0]
    return page(f'<!doctype html>\n<meta charset="utf-8">\n<p>Hello, {html.escape(name)}!</p>\n')


def template(request):
    fields = urllib.parse.parse_qs(request.query)
    name = fields.get("name", ["nobody"])[0]
    items = "".join(f"<li>{number} times {number} is {number * number}</li>\n" for number in (1, 2, 3))
    return page(PAGE.substitute(name=html.escape(name), items=items))


def upload(request):
    return f"{len(request.body)} bytes\n"


def slow(request):
    fields = urllib.parse.parse_qs(request.query)
    milliseconds = int(fields.get("ms", ["100"])[0])
    time.sleep(milliseconds / 1000)
    return f"waited {milliseconds} ms\n"


def error(request):
    raise RuntimeError("this page always fails")


def page(body):
    return poolparty.Response(200, {"Content-Type": "text/html; charset=utf-8"}, body)


ROUTES = {
    "/": home,
    "/json": as_json,
    "/form": form,
    "/page": template,
    "/upload": upload,
    "/slow": slow,
    "/error": error,
}


def handler(request):
    route = ROUTES.get(request.path)
    if route is None:
        return poolparty.Response(404, {"Content-Type": "text/plain; charset=utf-8"}, "not found\n")
    return route(request)


if __name__ == "__main__":
    poolparty.serve(handler)
