"use strict";
// What test_every_library.py asks of a library; the same in every language.

const { execSync } = require("child_process");
const poolparty = require("poolparty");

function healthCheck() {
  if (process.env.TEST_HEALTH === "fail") throw new Error("no database");
  if (process.env.TEST_HEALTH === "long") throw new Error("ü".repeat(5000));
}

function* pieces(request) {
  yield* ["one\n", "", Buffer.from("\xff\n", "latin1"), "grün\n"];
  if (request.query === "fail") throw new Error("this one fails");
}

function* more() {
  try {
    for (;;) yield "more\n";
  } finally {
    console.log("closed");
  }
}

const numbers = (count) => Array.from({ length: count }, (_, number) => number);

const routes = {
  "/echo"({ method, url, path, query, remoteAddress, headers, body }) {
    return {
      status: 201,
      headers: {
        Method: method, Uri: url, Path: path, Query: query, "Remote-Address": remoteAddress, Headers: headers.size,
      },
      body,
    };
  },
  "/header": (request) => request.headers.get(request.query) ?? { status: 404, body: "none" },
  "/text": () => "grün\n",
  "/octets": (request) => Buffer.alloc(Number(request.query), Buffer.from(numbers(256))),
  "/headers": () => ({ headers: { "Set-Cookie": ["a=1", "b=2"], "X-Long": "v".repeat(300) }, body: "" }),
  "/many-headers": () => ({ headers: Object.fromEntries(numbers(300).map((number) => [`X-${number}`, number])) }),
  "/empty": () => ({ status: 204 }),
  "/fail"() {
    throw new Error("this one fails");
  },
  "/bad-status": () => ({ status: 99 }),
  "/bad-header": () => ({ headers: { A: {} } }),
  "/bad-body": () => ({ body: 7 }),
  "/bad-answer": () => undefined,
  "/say"(request) {
    console.log("seen", request.path);
    return "";
  },
  "/program": () => execSync("cat | wc -c; test -e /proc/self/fd/3 && echo 3 is open || true", { stdio: ["inherit", "pipe", "inherit"] }),
  "/leave": () => process.exit(7),
  "/stream": (request) => ({ headers: { "Content-Type": "text/plain" }, body: pieces(request) }),
  "/endless": () => ({ body: more() }),
  "/stream-nothing": () => ({ body: [] }),
  "/stream-fail-first": () => ({
    // eslint-disable-next-line require-yield
    body: (async function* () {
      throw new Error("this one fails");
    })(),
  }),
};

poolparty.serve((request) => routes[request.path](request), healthCheck);
