"""A Flask application (Debian: apt install python3-flask):

poolparty --max-pool-size 4 --chdir examples/flask -- python3 -m poolparty.wsgi app:app
"""

import os

from flask import Flask, Response, render_template_string, request, session, stream_with_context

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY", "replace this: it signs the sessions of every process alike")

PAGE = "<!doctype html>\n<title>Hello</title>\n<h1>Hello, {{ name }}!</h1>\n"


@app.get("/")
def home():
    return "Hello from Flask!\n", {"Content-Type": "text/plain; charset=utf-8"}


@app.get("/hello/<name>")
def hello(name):
    return render_template_string(PAGE, name=name)


@app.post("/form")
def form():
    return f"Hello, {request.form.get('name', 'nobody')}!\n"


@app.post("/upload")
def upload():
    file = request.files["file"]
    return f"{file.filename}: {len(file.read())} bytes\n"


@app.get("/count")
def count():
    session["count"] = session.get("count", 0) + 1
    return f"{session['count']}\n"


@app.get("/stream")
def stream():
    lines = (f"line {number} of {request.path}\n" for number in range(3))
    return Response(stream_with_context(lines), mimetype="text/plain")


@app.get("/error")
def error():
    raise RuntimeError("this page always fails")
