"""The echo application of docs/writing-a-worker.md, for `poolparty-ctl check --echo`."""

import poolparty


def handler(request):
    path = request.path
    if path == "/fail":
        raise RuntimeError("this page always fails")
    if path == "/print":
        print("printed")
    if path == "/endless":
        return poolparty.Response(body=iter(lambda: "more\n", None))
    if path == "/stream":
        return poolparty.Response(body=(f"{word}\n" for word in ("one", "two", "three")))
    return poolparty.Response(
        200,
        {
            "Echo-Method": request.method,
            "Echo-Uri": request.uri,
            "Echo-Remote-Address": request.remote_address,
            "Echo-Check": request.headers.get("x-check", ""),
            "Echo-Headers": [f"{name}: {value}" for name, value in request.headers.items()],
        },
        request.body,
    )


if __name__ == "__main__":
    poolparty.serve(handler)
