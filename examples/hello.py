"""The smallest application: poolparty -- python examples/hello.py"""

import poolparty


def handler(request):
    return "hello\n"


if __name__ == "__main__":
    poolparty.serve(handler)
