<?php

// A small application: poolparty --max-pool-size 8 -- php examples/app.php
//
// The same application as the others of this folder, in PHP.

declare(strict_types=1);

require 'poolparty.php';

use Poolparty\Request;
use Poolparty\Response;

const FORM = <<<'HTML'
    <!doctype html>
    <meta charset="utf-8">
    <title>A form</title>
    <form method="post" action="/form">
    <label>Your name <input name="name"></label>
    <button>Send</button>
    </form>

    HTML;

/** The fields of a form or a query. */
function fields(string $encoded): array
{
    parse_str($encoded, $fields);
    return $fields;
}

function page(string $body): Response
{
    return new Response(200, ['Content-Type' => 'text/html; charset=utf-8'], $body);
}

function home(Request $request): string
{
    return "Hello from PHP!\n";
}

function json(Request $request): Response
{
    $facts = [
        'method' => $request->method,
        'path' => $request->path,
        'query' => $request->query,
        'headers' => (object) $request->headers,
    ];
    return new Response(200, ['Content-Type' => 'application/json'], json_encode($facts) . "\n");
}

function form(Request $request): Response
{
    if ($request->method !== 'POST') {
        return page(FORM);
    }
    $name = htmlspecialchars(fields($request->body)['name'] ?? 'nobody');
    return page("<!doctype html>\n<meta charset=\"utf-8\">\n<p>Hello, $name!</p>\n");
}

/** PHP is a template language: what is written outside of its tags, and echoed, is collected. */
function template(Request $request): Response
{
    $name = fields($request->query)['name'] ?? 'nobody';
    ob_start();
    ?>
<!doctype html>
<meta charset="utf-8">
<title>A page</title>
<h1>Hello, <?= htmlspecialchars($name) ?>!</h1>
<ul>
<?php foreach ([1, 2, 3] as $number) { ?>
<li><?= $number ?> times <?= $number ?> is <?= $number * $number ?></li>
<?php } ?>
</ul>
<?php
    return page(ob_get_clean());
}

function upload(Request $request): string
{
    return strlen($request->body) . " bytes\n";
}

function slow(Request $request): string
{
    $milliseconds = (int) (fields($request->query)['ms'] ?? 100);
    usleep($milliseconds * 1000);
    return "waited $milliseconds ms\n";
}

function error(Request $request): string
{
    throw new RuntimeException('this page always fails');
}

const ROUTES = [
    '/' => 'home', '/json' => 'json', '/form' => 'form', '/page' => 'template', '/upload' => 'upload',
    '/slow' => 'slow', '/error' => 'error',
];

Poolparty\serve(function (Request $request): string|Response {
    $route = ROUTES[$request->path] ?? null;
    if ($route === null) {
        return new Response(404, ['Content-Type' => 'text/plain; charset=utf-8'], "not found\n");
    }
    return $route($request);
});
