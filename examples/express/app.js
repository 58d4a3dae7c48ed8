"use strict";
// An Express application: poolparty --max-pool-size 8 -- node examples/express/app.js
//
// Nothing in it knows of Poolparty but the last line, which stands in app.listen()'s place.

const express = require("express");
const poolparty = require("poolparty");

const app = express();
app.disable("x-powered-by");
app.use(express.json());
app.use(express.urlencoded({ extended: false }));
app.use("/source", express.static(__dirname));

app.get("/", (req, res) => res.type("text").send("Hello from Express!\n"));

app.get("/users/:name", (req, res) => res.json({ name: req.params.name, query: req.query, ip: req.ip }));

app.post("/sum", (req, res) => res.json({ sum: req.body.numbers.reduce((sum, number) => sum + number, 0) }));

app.post("/form", (req, res) => {
  res.cookie("name", req.body.name);
  res.cookie("seen", "yes");
  res.redirect("/");
});

app.get("/count", (req, res) => {
  res.type("text");
  let number = 0;
  const timer = setInterval(() => {
    res.write(`${++number}\n`);
    if (number === 3) {
      clearInterval(timer);
      res.end();
    }
  }, 20);
});

app.get("/error", () => {
  throw new Error("this page always fails");
});

poolparty.serve(poolparty.http(app));
