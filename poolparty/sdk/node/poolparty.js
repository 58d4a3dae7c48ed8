"use strict";
// The worker library for JavaScript programs on Node:
//
//     const poolparty = require("poolparty");
//     poolparty.serve((request) => "hello\n");
//
// Runs in the child: requests arrive as frames on descriptor 0, answers leave on descriptor 3, stdout and stderr are
// free for printing (docs/worker-protocol.md). Requests are answered one at a time and in order; while one waits for
// a promise, and between requests, the event loop runs. README.md beside this file says what handlers get and give.

const fs = require("fs");
const net = require("net");
const { StringDecoder } = require("string_decoder");

const VERSION = "0.1.0";

const HTTP_REQUEST = 0;
const HEALTH_CHECK_REQUEST = 1;
const STREAM_CANCEL = 3;
const HTTP_RESPONSE = 0;
const READY = 1;
const HEALTH_REPLY = 2;
const RESPONSE_START = 3;
const RESPONSE_CHUNK = 4;
const RESPONSE_END = 5;

const ANSWERS = 3; // the descriptor
const MAX_FRAME_SIZE = 0x7fffffff;
const MAX_MESSAGE_SIZE = 1000; // of a health reply: a line of the log
const LARGE_BODY = 16384; // from here on two pieces in one writev beat joining them, which copies the body
const LINGERING = 1000; // ms that work begun by the program may take after the pipe's end

/** A request that breaks the framing: what follows could mean anything, so it ends the process. */
class BrokenFrame extends Error {}

/** The server has closed its end: nobody is left to be answered. */
class ServerGone extends Error {}

// ---- Requests.

/** A request's header fields: a Map under the names the server wrote (`User-Agent`), whose lookup ignores case. */
class Headers extends Map {
  #lower; // made by the first lookup that needs it

  get(name) {
    const value = super.get(name);
    return value === undefined ? this.#find(name) : value;
  }

  has(name) {
    return super.has(name) || this.#find(name) !== undefined;
  }

  #find(name) {
    if (this.#lower === undefined || this.#lower.size !== this.size) {
      this.#lower = new Map();
      for (const [key, value] of this) this.#lower.set(key.toLowerCase(), value);
    }
    return this.#lower.get(String(name).toLowerCase());
  }

  toJSON() {
    return Object.fromEntries(this);
  }
}

/**
 * method         "GET", …
 * url            absolute: "http://example.org/path?query"
 * path, query    the url's, as they were sent: percent-encoded; the query without "?", "" if there is none
 * searchParams   the query as a URLSearchParams
 * headers        Headers; of a field that was sent several times the values are joined by ", "
 * body           a Buffer
 * remoteAddress  "host:port" ("[::1]:4711" for IPv6)
 * signal         an AbortSignal: aborted when the client is found to have left while its response is streamed
 */
class Request {
  #headers;
  #payload;
  #fields; // where the headers' strings begin and end, in turn
  #controller; // of the signal, once it was asked for

  constructor({
    method = "GET",
    url = "http://localhost/",
    headers = {},
    body = "",
    remoteAddress = "127.0.0.1:0",
  } = {}) {
    this.method = method;
    this.url = url;
    this.body = Buffer.from(body);
    this.remoteAddress = remoteAddress;
    this.#headers = new Headers(Object.entries(headers));
    this.#split();
  }

  /** The request in the frame's payload: the headers are made into strings when they are first looked at. */
  static decode(payload) {
    const reader = new Reader(payload, 1);
    const request = new Request(NOTHING);
    request.remoteAddress = reader.string();
    request.url = reader.string();
    request.method = reader.string();
    const fields = [];
    for (let count = reader.uint() * 2; count > 0; count--) {
      const size = reader.uint();
      fields.push(reader.at, (reader.at += size));
    }
    const size = reader.uint();
    request.body = payload.subarray(reader.at, (reader.at += size));
    if (reader.at !== payload.length) throw new BrokenFrame("a request whose lengths do not add up to its frame's");
    request.#payload = payload;
    request.#fields = fields;
    request.#headers = undefined;
    request.#split();
    return request;
  }

  get headers() {
    if (this.#headers === undefined) {
      const payload = this.#payload;
      const at = this.#fields;
      this.#headers = new Headers();
      for (let n = 0; n < at.length; n += 4) {
        this.#headers.set(payload.utf8Slice(at[n], at[n + 1]), payload.utf8Slice(at[n + 2], at[n + 3]));
      }
    }
    return this.#headers;
  }

  get signal() {
    this.#controller ??= new AbortController();
    return this.#controller.signal;
  }

  static abort(request) {
    request.#controller ??= new AbortController();
    request.#controller.abort();
  }

  get searchParams() {
    return new URLSearchParams(this.query);
  }

  #split() {
    const url = this.url;
    const mark = url.indexOf("?");
    const end = mark < 0 ? url.length : mark;
    this.query = mark < 0 ? "" : url.slice(mark + 1);
    const scheme = url.indexOf("://");
    if (scheme < 0 || scheme > end) {
      this.path = url.slice(0, end);
    } else {
      const slash = url.indexOf("/", scheme + 3);
      this.path = slash < 0 || slash > end ? "/" : url.slice(slash, end);
    }
  }
}

const NOTHING = {};

class Reader {
  constructor(payload, at) {
    this.payload = payload;
    this.at = at;
  }

  uint() {
    let byte = this.payload[this.at++];
    if (byte < 128) return byte;
    let number = 0;
    let scale = 1;
    while (byte >= 128 && scale < MAX_FRAME_SIZE) {
      number += (byte - 128) * scale;
      scale *= 128;
      byte = this.payload[this.at++];
    }
    if (!(byte < 128)) throw new BrokenFrame("a request with a length that points beyond its frame");
    return number + byte * scale;
  }

  string() {
    const size = this.uint();
    if (this.at + size > this.payload.length) {
      throw new BrokenFrame("a request with a length that points beyond its frame");
    }
    return this.payload.utf8Slice(this.at, (this.at += size));
  }
}

// ---- Responses.

function uint(number) {
  const bytes = [];
  while (number > 127) {
    bytes.push((number % 128) + 128);
    number = Math.floor(number / 128);
  }
  bytes.push(number);
  return Buffer.from(bytes);
}

function sized(text) {
  const bytes = Buffer.from(text);
  return Buffer.concat([uint(bytes.length), bytes]);
}

/** The frame of a message that has no body. */
function framed(...pieces) {
  const payload = Buffer.concat(pieces);
  const size = Buffer.alloc(4);
  size.writeUInt32LE(payload.length);
  return Buffer.concat([size, payload]);
}

const shown = (value) => require("util").inspect(value, { depth: 1, maxStringLength: 200, breakLength: Infinity });

// Header fields as they are encoded: most are constants of the program. Those that change with each request fill
// it; then it is emptied.
const FIELDS = new Map();
const MAX_FIELDS = 256;
const MAX_FIELD_SIZE = 256;

function encodeField(name, value) {
  const key = typeof value === "string" ? `${name}\0${value}` : undefined;
  const known = key && FIELDS.get(key);
  if (known) return known;
  const values = (Array.isArray(value) ? value : [value]).map((each) => {
    if (typeof each === "string") return sized(each);
    if (typeof each === "number") return sized(String(each));
    throw new TypeError(`the response header ${shown(name)} is a string or an array of strings, not ${shown(value)}`);
  });
  const field = Buffer.concat([sized(name), uint(values.length), ...values]);
  if (key && field.length <= MAX_FIELD_SIZE) {
    if (FIELDS.size >= MAX_FIELDS) FIELDS.clear();
    FIELDS.set(key, field);
  }
  return field;
}

/** What precedes the body in both kinds of response. Headers are an object, or pairs as of a Map or fetch's Headers. */
function encodeHead(tag, status = 200, headers = undefined) {
  if (!Number.isInteger(status) || status < 200 || status > 599) {
    throw new TypeError(`a response's status is an integer from 200 to 599, not ${shown(status)}`);
  }
  const pieces = [Buffer.from([tag, (status & 127) | 128, status >> 7])]; // two bytes, in this range
  if (headers === undefined || headers === null) {
    pieces.push(Buffer.from([0]));
  } else if (typeof headers[Symbol.iterator] === "function" && typeof headers !== "string") {
    const fields = new Map();
    for (const [name, value] of headers) {
      fields.set(name, fields.has(name) ? [fields.get(name), value].flat() : value);
    }
    pieces.push(uint(fields.size));
    for (const [name, value] of fields) pieces.push(encodeField(name, value));
  } else if (typeof headers === "object") {
    const names = Object.keys(headers);
    pieces.push(uint(names.length));
    for (const name of names) pieces.push(encodeField(name, headers[name]));
  } else {
    throw new TypeError(`a response's headers are an object, not ${shown(headers)}`);
  }
  return Buffer.concat(pieces);
}

const TEXT = encodeHead(HTTP_RESPONSE, 200, { "Content-Type": "text/plain; charset=utf-8" });
const OCTETS = encodeHead(HTTP_RESPONSE, 200, { "Content-Type": "application/octet-stream" });
const FAILURE = framed(
  encodeHead(HTTP_RESPONSE, 500, { "Content-Type": "text/plain; charset=utf-8" }),
  sized("internal server error\n"),
);

/** A body's bytes; undefined for what is none. */
function bytesOf(body) {
  if (body instanceof Uint8Array) return body;
  if (typeof body === "string") return Buffer.from(body);
  if (ArrayBuffer.isView(body)) return Buffer.from(body.buffer, body.byteOffset, body.byteLength);
  if (body instanceof ArrayBuffer) return Buffer.from(body);
  if (body === null || body === undefined) return Buffer.alloc(0);
  return undefined;
}

/** Write all of these pieces. The pipe blocks: less than all is written only when a signal came in between. */
function write(pieces) {
  while (pieces.length) {
    let written;
    try {
      written = pieces.length === 1 ? fs.writeSync(ANSWERS, pieces[0]) : fs.writevSync(ANSWERS, pieces);
    } catch (error) {
      throw error.code === "EPIPE" ? new ServerGone() : error;
    }
    while (pieces.length && written >= pieces[0].length) written -= pieces.shift().length;
    if (written) pieces[0] = pieces[0].subarray(written);
  }
}

/** Write head and body as one frame. */
function writeWhole(head, body) {
  const size = body.length;
  const length = uint(size);
  const total = head.length + length.length + size;
  if (total > MAX_FRAME_SIZE) {
    throw new RangeError(`a response of ${total} bytes is larger than a frame can be (${MAX_FRAME_SIZE})`);
  }
  const start = 4 + head.length + length.length;
  const joined = size < LARGE_BODY;
  const frame = Buffer.allocUnsafe(joined ? start + size : start);
  frame.writeUInt32LE(total);
  frame.set(head, 4);
  frame.set(length, 4 + head.length);
  if (joined) frame.set(body, start);
  write(joined ? [frame] : [frame, body]);
}

// ---- The process.

/**
 * The requests' pipe in a socket, with /dev/null in its place, so that no program the handler starts finds our
 * requests on its standard input and eats them. Node itself keeps descriptor 3 from being inherited.
 */
function takePipe() {
  let source;
  try {
    fs.fstatSync(ANSWERS);
    // Without O_NONBLOCK it would wait for a writer, if the server has closed its end already.
    source = fs.openSync("/dev/fd/0", fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  } catch (error) {
    source = undefined;
  }
  if (source === undefined || !(fs.fstatSync(source).isFIFO() && fs.fstatSync(ANSWERS).isFIFO())) {
    throw new Error(
      "poolparty.serve(): descriptors 0 and 3 are not the server's pipes. This program is started by the server: " +
        `poolparty -- node ${process.argv[1] || "app.js"}`,
    );
  }
  fs.closeSync(0);
  fs.openSync("/dev/null", "r"); // gets the number that is free now
  return new net.Socket({ fd: source, readable: true, writable: false });
}

/** The incoming bytes as payloads. */
class Frames {
  #chunks = [];
  #have = 0;
  #need = 4; // before it is worth looking again
  #looked = 0; // for a cancel: where the next frame begins

  push(chunk) {
    this.#chunks.push(chunk);
    this.#have += chunk.length;
  }

  /** Whether a StreamCancel stands in what is here. */
  cancelled() {
    if (this.#chunks.length > 1) this.#chunks = [Buffer.concat(this.#chunks)];
    const [data] = this.#chunks;
    while (this.#have >= this.#looked + 5) {
      if (data[this.#looked + 4] === STREAM_CANCEL) return true;
      this.#looked += 4 + data.readUInt32LE(this.#looked);
    }
    return false;
  }

  /** The next frame's payload; undefined until it is there. */
  next() {
    if (this.#have < this.#need) return undefined;
    this.#looked = 0;
    let data = this.#chunks.length > 1 ? Buffer.concat(this.#chunks) : this.#chunks[0];
    const size = data.readUInt32LE(0);
    let payload;
    if (data.length >= 4 + size) {
      payload = data.subarray(4, 4 + size);
      data = data.subarray(4 + size);
      this.#need = 4;
    } else {
      this.#need = 4 + size;
    }
    this.#chunks = data.length ? [data] : [];
    this.#have = data.length;
    return payload;
  }
}

function report(what, error) {
  console.error(`poolparty: ${what}\n${error instanceof Error ? error.stack : shown(error)}`);
}

/** A turn of the event loop, in which what has come is read. */
const turn = () => new Promise(setImmediate);

const isThenable = (value) => value !== null && typeof value === "object" && typeof value.then === "function";

/**
 * Answer requests with handler(request) until the server closes the pipe; the promise is then kept.
 *
 * The handler returns, or promises, a string (200, text/plain), a Uint8Array or Buffer (200,
 * application/octet-stream), or an object with any of status, headers and body; a fetch Response is one. What it
 * throws is written to stderr and answered `500 internal server error`; the process lives on. A body in pieces is not
 * asked for more when its client has left: its iterator is closed, and what can be is destroyed.
 *
 * healthCheck() is called now and then while no request runs. If it throws, or its promise is broken, this process
 * is unwell and will be replaced.
 */
function serve(handler, healthCheck = undefined) {
  const source = takePipe();
  // A terminal's Ctrl-C is for the server, which then drains: this process ends when its pipe does.
  if (process.listenerCount("SIGINT") === 0) process.on("SIGINT", () => {});
  const offered = (process.env.POOLPARTY_FEATURES || "").split(",");
  const saysReady = offered.includes("ready");
  const replies = saysReady && offered.includes("health-reply");
  const streams = saysReady && offered.includes("stream");
  const cancels = streams && offered.includes("stream-cancel");
  let cancel; // to be called when the client of the stream that runs has left

  /** A promise only where there is something to wait for: it would cost every request a turn of the event loop. */
  function respond(request, answer) {
    if (typeof answer === "string") return writeWhole(TEXT, Buffer.from(answer));
    if (answer instanceof Uint8Array) return writeWhole(OCTETS, answer);
    if (answer === null || typeof answer !== "object") {
      throw new TypeError(`a handler returns a string, a Buffer or an object, not ${shown(answer)}`);
    }
    const { status, headers, body } = answer;
    const bytes = bytesOf(body);
    if (bytes !== undefined) return writeWhole(encodeHead(HTTP_RESPONSE, status, headers), bytes);
    if (typeof body[Symbol.asyncIterator] === "function" || typeof body[Symbol.iterator] === "function") {
      return streams ? stream(request, status, headers, body) : collect(status, headers, body);
    }
    throw new TypeError(`a response's body is a string, a Buffer or an iterable of them, not ${shown(body)}`);
  }

  function bytesOfChunk(chunk) {
    const bytes = bytesOf(chunk);
    if (bytes === undefined) throw new TypeError(`a body's chunks are strings or Buffers, not ${shown(chunk)}`);
    return bytes;
  }

  async function collect(status, headers, body) {
    const chunks = [];
    for await (const chunk of body) chunks.push(bytesOfChunk(chunk));
    writeWhole(encodeHead(HTTP_RESPONSE, status, headers), Buffer.concat(chunks));
  }

  async function stream(request, status, headers, body) {
    const start = framed(encodeHead(RESPONSE_START, status, headers));
    const iterator = body[Symbol.asyncIterator] ? body[Symbol.asyncIterator]() : body[Symbol.iterator]();
    let started = false;
    let cancelled = false;
    let wake; // while the next chunk is waited for
    // What `for await` does; but a client that leaves is noticed while the next chunk is waited for, too.
    const next = () =>
      new Promise((resolve, reject) => {
        wake = resolve;
        Promise.resolve(iterator.next()).then(resolve, reject);
      });
    const close = async () => {
      try {
        await iterator.return?.();
      } catch (error) {
        report("closing the body of a response failed", error);
      }
    };
    const left = () => {
      cancelled = true;
      if (typeof body.destroy === "function") body.destroy();
      Request.abort(request);
      wake?.();
    };
    try {
      while (!cancelled) {
        const step = await next();
        if (cancelled || step.done) break;
        wake = undefined;
        const bytes = bytesOfChunk(await step.value);
        if (bytes.length === 0) continue;
        // The first chunk comes before the head: what fails until then can still be answered 500.
        if (!started) write([start]);
        started = true;
        writeWhole(Buffer.from([RESPONSE_CHUNK]), bytes);
        if (cancels) {
          cancel = left;
          await turn();
        }
      }
      if (cancelled) {
        const closed = close();
        if (wake === undefined) await closed; // otherwise it waits for something, and is closed when that has come
      }
    } catch (error) {
      if (!started) await close();
      if (!started || error instanceof ServerGone) throw error;
      report("a response failed after it had begun", error);
      process.exit(1); // half of an answer must not pass for a whole one
    } finally {
      cancel = undefined;
    }
    if (started) write([framed(Buffer.from([RESPONSE_END]))]);
    else writeWhole(encodeHead(HTTP_RESPONSE, status, headers), Buffer.alloc(0));
  }

  function failed(request, error) {
    if (error instanceof ServerGone) throw error;
    report(`${request.method} ${shown(request.url)} failed`, error);
    write([FAILURE]);
  }

  function answer(request) {
    try {
      const made = handler(request);
      const done = isThenable(made) ? made.then((answer) => respond(request, answer)) : respond(request, made);
      if (isThenable(done)) return done.then(undefined, (error) => failed(request, error));
    } catch (error) {
      failed(request, error);
    }
    return undefined;
  }

  async function checkHealth() {
    let message = "";
    let ok = 1;
    try {
      if (healthCheck) await healthCheck();
    } catch (error) {
      report("the health check failed", error);
      if (!replies) process.exit(1);
      ok = 0;
      // A character that is cut in two is left away.
      message = new StringDecoder("utf8").write(Buffer.from(String(error)).subarray(0, MAX_MESSAGE_SIZE));
    }
    if (replies) write([framed(Buffer.from([HEALTH_REPLY, ok]), sized(message))]);
  }

  function handle(payload) {
    const tag = payload[0];
    if (tag === HTTP_REQUEST) return answer(Request.decode(payload));
    if (tag === HEALTH_CHECK_REQUEST && payload.length === 1) return checkHealth();
    if (tag === STREAM_CANCEL && payload.length === 1) return undefined; // of a stream that has ended meanwhile
    throw new BrokenFrame(
      tag === undefined ? "an empty frame" : `a request of a kind this library does not know (${tag})`,
    );
  }

  return new Promise((resolve) => {
    const frames = new Frames();
    let busy = false;
    let ended = false;

    function end() {
      if (ended) return;
      ended = true;
      source.destroy();
      resolve();
      // A timer or a connection of the program must not keep a process that has no more to do.
      setTimeout(() => process.exit(), LINGERING).unref();
    }

    function fail(error) {
      if (error instanceof ServerGone) return end();
      if (error instanceof BrokenFrame) {
        console.error(`poolparty: ${error.message}`);
        process.exit(1);
      }
      throw error;
    }

    function run() {
      try {
        for (let payload = frames.next(); payload !== undefined && !ended; payload = frames.next()) {
          const waiting = handle(payload);
          if (waiting !== undefined) {
            busy = true;
            waiting.then(() => {
              busy = false;
              run();
            }, fail);
            return;
          }
        }
        if (source.readableEnded) end();
      } catch (error) {
        fail(error);
      }
    }

    source.on("data", (chunk) => {
      frames.push(chunk);
      if (!busy) run();
      else if (cancel !== undefined && frames.cancelled()) cancel();
    });
    source.on("end", () => {
      if (!busy) end();
      else cancel?.();
    });
    source.on("error", end);
    try {
      if (saysReady) {
        const features = ["health-reply", "stream", "stream-cancel"].filter((_, n) => [replies, streams, cancels][n]);
        write([framed(Buffer.from([READY, features.length]), ...features.map(sized))]);
      }
    } catch (error) {
      fail(error);
    }
  });
}

/** A handler from a listener of the `http` module, (req, res) => …, such as an Express application. */
function http(listener) {
  return require("./poolparty-http.js")(listener);
}

module.exports = { serve, http, Request, Headers, VERSION };
