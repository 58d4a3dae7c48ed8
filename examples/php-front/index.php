<?php

// A plain PHP application, as it stands under any web server (Debian: apt install php-cli php-cgi):
//
//     poolparty --max-pool-size 4 -- php -r 'require "poolparty/cgi.php";' examples/php-front/index.php
//
// What a request shows of the adapter: superglobals, headers, cookies, sessions, uploads, a stream, an error.

session_save_path(sys_get_temp_dir());

function text(string $text): void
{
    header('Content-Type: text/plain; charset=utf-8');
    echo $text;
}

$path = parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH);

switch ($path) {
    case '/':
        text("Hello from plain PHP!\n");
        break;
    case '/hello':
        ?><h1>Hello, <?= htmlspecialchars($_GET['name'] ?? 'nobody') ?>!</h1>
<?php
        break;
    case '/form':
        text('Hello, ' . ($_POST['name'] ?? 'nobody') . "!\n");
        break;
    case '/json':
        $given = json_decode(file_get_contents('php://input'), true);
        header('Content-Type: application/json');
        echo json_encode(['given' => $given, 'host' => $_SERVER['HTTP_HOST'], 'method' => $_SERVER['REQUEST_METHOD']]);
        break;
    case '/upload':
        $file = $_FILES['file'];
        $moved = tempnam(sys_get_temp_dir(), 'upload');
        move_uploaded_file($file['tmp_name'], $moved) || throw new RuntimeException('not uploaded');
        text("$file[name]: " . filesize($moved) . " bytes\n");
        unlink($moved);
        break;
    case '/count':
        session_start();
        $_SESSION['count'] = ($_SESSION['count'] ?? 0) + 1;
        text("$_SESSION[count]\n");
        break;
    case '/cookies':
        setcookie('a', '1');
        setcookie('b', '2', ['path' => '/', 'httponly' => true]);
        text(http_build_query($_COOKIE));
        break;
    case '/redirect':
        header('Location: /');
        exit;
    case '/stream':
        header('Content-Type: text/plain');
        for ($number = 0; $number < 3; $number++) {
            echo "line $number\n";
            @ob_flush(); // of output_buffering, if php.ini has it on
            flush();
        }
        break;
    case '/error':
        throw new RuntimeException('this page always fails');
    default:
        http_response_code(404);
        text("no such page\n");
}
