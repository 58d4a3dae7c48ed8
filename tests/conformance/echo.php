<?php
// The echo application of docs/writing-a-worker.md, for `poolparty-ctl check --echo`.

require 'poolparty.php';

use Poolparty\Request;
use Poolparty\Response;

function pieces(): Generator
{
    yield from ["one\n", "two\n", "three\n"];
}

function more(): Generator
{
    while (true) {
        yield "more\n";
    }
}

function handler(Request $request): Response
{
    switch ($request->path) {
        case '/fail':
            throw new RuntimeException('this page always fails');
        case '/print':
            echo "printed\n";
            break;
        case '/stream':
            return new Response(200, [], pieces());
        case '/endless':
            return new Response(200, [], more());
    }
    $headers = [];
    foreach ($request->headers as $name => $value) {
        $headers[] = "$name: $value";
    }
    return new Response(200, [
        'Echo-Method' => $request->method,
        'Echo-Uri' => $request->uri,
        'Echo-Remote-Address' => $request->remote_address,
        'Echo-Check' => $request->header('x-check') ?? '',
        'Echo-Headers' => $headers,
    ], $request->body);
}

Poolparty\serve('handler');
