"use strict";
// The echo application of docs/writing-a-worker.md, for `poolparty-ctl check --echo`.

const poolparty = require("poolparty");

function* pieces() {
  yield* ["one\n", "two\n", "three\n"];
}

function* more() {
  for (;;) yield "more\n";
}

poolparty.serve((request) => {
  if (request.path === "/fail") throw new Error("this page always fails");
  if (request.path === "/print") console.log("printed");
  if (request.path === "/stream") return { body: pieces() };
  if (request.path === "/endless") return { body: more() };
  return {
    headers: {
      "Echo-Method": request.method,
      "Echo-Uri": request.url,
      "Echo-Remote-Address": request.remoteAddress,
      "Echo-Check": request.headers.get("x-check") ?? "",
      "Echo-Headers": [...request.headers].map(([name, value]) => `${name}: ${value}`),
    },
    body: request.body,
  };
});
