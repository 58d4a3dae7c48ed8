"use strict";
// poolparty.http(listener): a handler for poolparty.serve() from a listener of http.createServer(), (req, res) => …,
// such as an Express application. Loaded by poolparty.js when it is first used.
//
// req and res are Node's own classes on a connection that is none: what res writes there, an HTTP/1.1 response, is
// taken apart again. So everything that res can do, whoever has put methods of its own over Node's, does here.

const { IncomingMessage, ServerResponse } = require("http");
const { Duplex, PassThrough } = require("stream");

/** Keeps what a ServerResponse writes: the head, and the body behind it, which becomes a stream if it takes time. */
class Connection extends Duplex {
  constructor(request) {
    super({ autoDestroy: true });
    const colon = request.remoteAddress.lastIndexOf(":");
    this.remoteAddress = request.remoteAddress.slice(0, Math.max(colon, 0)).replace(/^\[|\]$/g, "");
    this.remotePort = Number(request.remoteAddress.slice(colon + 1)) || 0;
    this.encrypted = request.url.startsWith("https:");
    this.head = "";
    this.headers = undefined; // the head's lines, once it is there
    this.chunks = [];
    this.stream = undefined;
  }

  _read() {}

  _write(chunk, encoding, callback) {
    if (this.headers === undefined) {
      this.head += chunk.latin1Slice();
      const end = this.head.indexOf("\r\n\r\n");
      if (end < 0) return callback();
      chunk = Buffer.from(this.head.slice(end + 4), "latin1");
      this.headers = this.head.slice(0, end).split("\r\n");
      this.emit("head");
    }
    if (this.stream !== undefined) {
      this.stream.write(chunk, callback);
    } else {
      if (chunk.length) this.chunks.push(chunk);
      callback();
    }
  }

  _final(callback) {
    if (this.stream !== undefined) this.stream.end();
    callback();
  }

  _destroy(error, callback) {
    if (this.stream !== undefined && !this.writableFinished) {
      this.stream.destroy(error || new Error("the connection was destroyed in the middle of an answer"));
    }
    callback(error);
  }

  beginStream() {
    this.stream = new PassThrough();
    // Destroyed when the client has left; res and req then say so, as they do on a connection of http.Server's.
    this.stream.on("close", () => {
      if (!this.writableEnded) this.destroy();
    });
    for (const chunk of this.chunks) this.stream.write(chunk);
    return this.stream;
  }

  setTimeout() {
    return this;
  }

  setNoDelay() {
    return this;
  }

  setKeepAlive() {
    return this;
  }
}

// What concerns the connection, which is the server's. A Content-Length is only of use to a HEAD's answer, and to one
// whose body is still to come.
const OF_THE_CONNECTION = new Set(["connection", "keep-alive", "transfer-encoding", "date"]);

function answerOf(connection, method, body) {
  const [statusLine, ...lines] = connection.headers;
  const headers = [];
  const counted = method !== "HEAD" && Buffer.isBuffer(body);
  for (const line of lines) {
    const colon = line.indexOf(": ");
    const name = line.slice(0, colon);
    const lower = name.toLowerCase();
    if (OF_THE_CONNECTION.has(lower) || (lower === "content-length" && counted)) continue;
    headers.push([name, line.slice(colon + 2)]);
  }
  return { status: Number(statusLine.split(" ")[1]), headers, body };
}

const handlerOf = (listener) => (request) => {
  const connection = new Connection(request);
  const req = new IncomingMessage(connection);
  req.method = request.method;
  req.url = request.path + (request.query ? `?${request.query}` : "");
  req.httpVersion = "1.1";
  req.httpVersionMajor = req.httpVersionMinor = 1;
  req.rawHeaders = [...request.headers].flat();
  const headers = {};
  for (const [name, value] of request.headers) headers[name.toLowerCase()] = value;
  req.headers = headers;
  req.complete = true;
  if (request.body.length) req.push(request.body);
  req.push(null);

  const res = new ServerResponse(req);
  res.sendDate = false;
  res.shouldKeepAlive = false;
  // The body as it is, whatever the listener says of its coding.
  Object.defineProperty(res, "chunkedEncoding", { get: () => false, set() {} });
  res.useChunkedEncodingByDefault = false;
  return new Promise((resolve, reject) => {
    const finish = (body) => resolve(answerOf(connection, request.method, body));
    connection.on("head", () => {
      process.nextTick(() => {
        if (!res.writableEnded) finish(connection.beginStream());
        else connection.on("finish", () => finish(Buffer.concat(connection.chunks)));
      });
    });
    // http.Server would pass this on.
    connection.on("drain", () => {
      if (!res.writableEnded) res.emit("drain");
    });
    connection.on("error", reject);
    connection.on("close", () => {
      reject(new Error("the connection was destroyed before an answer"));
      req.destroy();
    });
    res.on("finish", () => {
      res.detachSocket(connection);
      connection.end();
    });
    res.assignSocket(connection);
    const made = listener(req, res);
    if (made !== null && typeof made === "object" && typeof made.then === "function") made.then(undefined, reject);
  });
};

module.exports = handlerOf;
