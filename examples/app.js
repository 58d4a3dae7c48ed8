"use strict";
// A small application: poolparty --max-pool-size 8 -- node examples/app.js
//
// The same as app.py, answer for answer.

const { setTimeout: sleep } = require("timers/promises");
const poolparty = require("poolparty");

const FORM = `<!doctype html>
<meta charset="utf-8">
<title>A form</title>
<form method="post" action="/form">
<label>Your name <input name="name"></label>
<button>Send</button>
</form>
`;

const PAGE = ({ name, numbers }) => `<!doctype html>
<meta charset="utf-8">
<title>A page</title>
<h1>Hello, ${escape(name)}!</h1>
<ul>
${numbers.map((number) => `<li>${number} times ${number} is ${number * number}</li>\n`).join("")}</ul>
`;

const page = (body) => ({ headers: { "Content-Type": "text/html; charset=utf-8" }, body });

const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;" };

const escape = (text) => text.replace(/[&<>"']/g, (character) => ENTITIES[character]);

/** Strings and objects of them as JSON, in the order of their names and spaced as app.py has it. */
function json(value) {
  if (typeof value === "string") return JSON.stringify(value);
  const pairs = Object.keys(value)
    .sort()
    .map((name) => `${json(name)}: ${json(value[name])}`);
  return `{${pairs.join(", ")}}`;
}

const routes = {
  "/": () => "Hello from JavaScript!\n",

  "/json"({ method, path, query, headers }) {
    const facts = { method, path, query, headers: Object.fromEntries(headers) };
    return { headers: { "Content-Type": "application/json" }, body: json(facts) + "\n" };
  },

  "/form"(request) {
    if (request.method !== "POST") return page(FORM);
    const name = new URLSearchParams(request.body.toString()).get("name") ?? "nobody";
    return page(`<!doctype html>\n<meta charset="utf-8">\n<p>Hello, ${escape(name)}!</p>\n`);
  },

  "/page"(request) {
    return page(PAGE({ name: request.searchParams.get("name") ?? "nobody", numbers: [1, 2, 3] }));
  },

  "/upload": (request) => `${request.body.length} bytes\n`,

  async "/slow"(request) {
    const milliseconds = Number(request.searchParams.get("ms") ?? 100);
    await sleep(milliseconds);
    return `waited ${milliseconds} ms\n`;
  },

  "/error"() {
    throw new Error("this page always fails");
  },
};

poolparty.serve((request) => {
  const route = Object.hasOwn(routes, request.path) ? routes[request.path] : undefined;
  if (route === undefined) {
    return { status: 404, headers: { "Content-Type": "text/plain; charset=utf-8" }, body: "not found\n" };
  }
  return route(request);
});
