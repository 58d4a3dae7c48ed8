"""A Starlette application (Debian: apt install python3-starlette):

poolparty --max-pool-size 4 --chdir examples/starlette -- python3 -m poolparty.asgi app:app
"""

from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route


@asynccontextmanager
async def lifespan(app):
    yield {"greeting": "Hello from Starlette!\n"}  # a connection to a database would be made here


async def home(request):
    return PlainTextResponse(request.state.greeting)


async def hello(request):
    return JSONResponse({"hello": request.path_params["name"]})


async def upload(request):
    return PlainTextResponse(f"{len(await request.body())} bytes\n")


async def stream(request):
    async def lines():
        for number in range(3):
            yield f"line {number} of {request.url.path}\n"

    return StreamingResponse(lines(), media_type="text/plain")


async def error(request):
    raise RuntimeError("this page always fails")


app = Starlette(
    routes=[
        Route("/", home),
        Route("/hello/{name}", hello),
        Route("/upload", upload, methods=["POST"]),
        Route("/stream", stream),
        Route("/error", error),
    ],
    lifespan=lifespan,
)
