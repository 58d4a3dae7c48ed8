<?php

// What test_every_library.py asks of a library; the same in every language.

require 'poolparty.php';

use Poolparty\Request;
use Poolparty\Response;

function health_check(): void
{
    match (getenv('TEST_HEALTH')) {
        'fail' => throw new RuntimeException('no database'),
        'long' => throw new RuntimeException(str_repeat('ü', 5000)),
        default => null,
    };
}

function pieces(Request $request): Generator
{
    yield from ["one\n", '', "\xff\n", "grün\n"];
    if ($request->query === 'fail') {
        throw new RuntimeException('this one fails');
    }
}

function more(): Generator
{
    try {
        while (true) {
            yield "more\n";
        }
    } finally {
        echo "closed\n";
    }
}

function failing(): Generator
{
    throw new RuntimeException('this one fails');
    yield;
}

/** Runs until the file that the query names is there, and says where that begins. */
function spin(Request $request): string
{
    echo "spins\n";
    do {
        clearstatcache();
    } while (!file_exists($request->query));
    return 'stopped';
}

function handler(Request $request): mixed
{
    switch ($request->path) {
        case '/echo':
            $headers = [
                'Method' => $request->method, 'Uri' => $request->uri, 'Path' => $request->path,
                'Query' => $request->query, 'Remote-Address' => $request->remote_address,
                'Headers' => (string) count($request->headers),
            ];
            return new Response(201, $headers, $request->body);
        case '/header':
            return $request->header($request->query) ?? new Response(404, [], 'none');
        case '/text':
            return "grün\n";
        case '/octets':
            $body = str_repeat(pack('C*', ...range(0, 255)), (int) $request->query / 256);
            return new Response(200, ['Content-Type' => 'application/octet-stream'], $body);
        case '/headers':
            return new Response(200, ['Set-Cookie' => ['a=1', 'b=2'], 'X-Long' => str_repeat('v', 300)]);
        case '/many-headers':
            $headers = [];
            for ($number = 0; $number < 300; $number++) {
                $headers["X-$number"] = "$number";
            }
            return new Response(200, $headers);
        case '/empty':
            return new Response(204);
        case '/fail':
            throw new RuntimeException('this one fails');
        case '/bad-status':
            return new Response(99);
        case '/bad-header':
            return new Response(200, ['A' => new stdClass()]);
        case '/bad-body':
            return new Response(200, [], new stdClass());
        case '/bad-answer':
            return null;
        case '/say':
            echo "seen $request->path\n";
            return '';
        case '/program':
            return shell_exec('cat | wc -c; test -e /proc/self/fd/3 && echo 3 is open');
        case '/spin':
            return spin($request);
        case '/leave':
            exit(7);
        case '/stream':
            return new Response(200, ['Content-Type' => 'text/plain'], pieces($request));
        case '/endless':
            return new Response(200, [], more());
        case '/stream-nothing':
            return new Response(200, [], []);
        case '/stream-fail-first':
            return new Response(200, [], failing());
    }
}

Poolparty\serve(handler(...), health_check(...));
