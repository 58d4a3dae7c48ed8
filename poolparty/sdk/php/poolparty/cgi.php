<?php

/**
 * PHP applications as they are: front controllers, or a folder of .php files.
 *
 *     poolparty -- php -r 'require "poolparty/cgi.php";' public/index.php
 *     poolparty -- php -r 'require "poolparty/cgi.php";' public
 *
 * In php-cli a script cannot be run again as if for the first time, header() leaves nothing, and php://input and
 * is_uploaded_file() know no request. So each child has a php-cgi beside it, which runs the scripts, and passes it one
 * request after the other by FastCGI over one connection. There everything is as under a web server: superglobals,
 * header(), setcookie(), sessions, uploads, php://input, exit(), opcache. The two live and end together.
 *
 * Further words are php-cgi's options: "-d upload_max_filesize=4M", say, for its settings are its own (php.ini for
 * "cgi"), and bound a request too. POOLPARTY_PHP_CGI names another php-cgi than the one on the PATH.
 */

declare(strict_types=1);

namespace Poolparty\Cgi;

require_once __DIR__ . '/../poolparty.php';

use Poolparty\Request;
use Poolparty\Response;

/**
 * Serve the script $path, for every request, or the scripts below the folder $path: that which the request's path
 * names, a folder's index.php, or else the folder's own index.php.
 *
 * @param list<string> $options php-cgi's
 */
function serve(string $path, array $options = []): void
{
    $real = realpath($path);
    $script = $real !== false && is_dir($real) ? "$real/index.php" : $real;
    if ($script === false || !is_file($script)) {
        fwrite(STDERR, "poolparty: $path is neither a PHP script nor a folder with an index.php\n");
        exit(1);
    }
    $scripts = new Scripts(dirname($script), $script, is_dir($real));
    $cgi = new Process(getenv('POOLPARTY_PHP_CGI') ?: 'php-cgi', $options);
    \Poolparty\serve(static fn (Request $request): Response => $cgi->answer($request, $scripts->find($request->path)));
}

/** Which script a request's path names. @internal */
final class Scripts
{
    public function __construct(
        public readonly string $root,
        private readonly string $front,
        private readonly bool $by_path,
    ) {
    }

    /** @return array{script: string, name: string, path_info: string, root: string} */
    public function find(string $path): array
    {
        $path = rawurldecode($path);
        // The server has resolved "..", but what was encoded appears only now.
        if ($this->by_path && !str_contains($path, "\0") && !preg_match('~(^|/)\.\.(/|$)~', $path)) {
            if (preg_match('~^(/.*?\.php)(/.*)?$~s', $path, $parts) && $this->isScript($parts[1])) {
                return $this->found($parts[1], $parts[2] ?? '');
            }
            $index = rtrim($path, '/') . '/index.php';
            if ($this->isScript($index)) {
                return $this->found($index, '');
            }
        }
        return $this->found('/' . basename($this->front), '');
    }

    private function isScript(string $name): bool
    {
        $real = realpath($this->root . $name);
        return $real !== false && is_file($real) && str_starts_with($real, $this->root . '/');
    }

    /** @return array{script: string, name: string, path_info: string, root: string} */
    private function found(string $name, string $path_info): array
    {
        return ['script' => $this->root . $name, 'name' => $name, 'path_info' => $path_info, 'root' => $this->root];
    }
}

/** A php-cgi, and the FastCGI connection to it. @internal */
final class Process
{
    private const BEGIN_REQUEST = 1;
    private const END_REQUEST = 3;
    private const PARAMS = 4;
    private const STDIN = 5;
    private const STDOUT = 6;
    private const STDERR = 7;
    private const GET_VALUES = 9;

    /** "Responder", and: keep the connection. */
    private const BEGIN = "\1\1\0\1\0\10\0\0" . "\0\1\1\0\0\0\0\0";

    private const MAX_CONTENT = 65528; // of a record: its size is 16 bits, and a multiple of 8 needs no padding
    private const READ_SIZE = 65536;
    private const BOOT_TIMEOUT = 10; // seconds
    private const ABANDONED_TIMEOUT = 0.2; // seconds that a script whose client has left may take to end by itself
    private const ABORTED_TIMEOUT = 1; // seconds, and then for its shutdown functions
    private const FOREVER = 1 << 30; // seconds: what takes too long is for the server to judge

    // So much fits the socket, which is empty when a request begins: to write it never waits for php-cgi to read.
    private const SMALL = 65536;

    /** @var resource */
    private $process;

    /** @var resource */
    private $connection;

    private string $read = '';

    /** Whether a script runs, or what it has written was not read up to its end. */
    private bool $running = false;

    /** @param list<string> $options */
    public function __construct(private readonly string $program, private readonly array $options)
    {
        $this->start();
        register_shutdown_function(function (): void {
            proc_terminate($this->process, 9);
        });
    }

    private function start(): void
    {
        $program = $this->program;
        // Whoever can connect runs any script as this user: so the socket stands in a folder that is ours alone, and
        // only until we are connected.
        $folder = sys_get_temp_dir() . '/poolparty-' . bin2hex(random_bytes(8));
        mkdir($folder, 0700) || throw new \RuntimeException("cannot make $folder");
        // A socket's path holds 107 bytes, and PHP cuts off what is longer: so it is told from within the folder.
        $here = getcwd();
        chdir($folder);
        try {
            $listening = stream_socket_server('unix://fastcgi', $code, $message)
                ?: throw new \RuntimeException("no socket for php-cgi: $message");
            $environment = getenv();
            $environment['PHP_FCGI_MAX_REQUESTS'] = '0'; // that it lives on is decided by whoever ends this child
            unset($environment['PHP_FCGI_CHILDREN'], $environment['POOLPARTY_FEATURES']);
            // Descriptor 3 is the server's, and not for others: there /dev/null takes its place.
            $descriptors = [$listening, STDERR, STDERR, ['file', '/dev/null', 'r']];
            $this->process = @proc_open([$program, ...$this->options], $descriptors, $pipes, $here, $environment)
                ?: self::failed($program);
            fclose($listening); // so that what is refused there is refused here
            $connect = static fn () => @stream_socket_client('unix://fastcgi', $code, $message)
                ?: self::failed($program);
            // To be asked for its abilities ends a connection of php-cgi's, and shows that it runs.
            $asking = $connect();
            fwrite($asking, self::records(self::GET_VALUES, self::parameters(['FCGI_MPXS_CONNS' => '']), false));
            stream_set_timeout($asking, self::BOOT_TIMEOUT);
            if (strlen((string) fread($asking, 8)) < 8) {
                self::failed($program);
            }
            $this->connection = $connect();
        } finally {
            chdir($here);
            @unlink("$folder/fastcgi");
            rmdir($folder);
        }
        stream_set_timeout($this->connection, self::FOREVER);
        stream_set_chunk_size($this->connection, self::READ_SIZE);
        $this->read = '';
        $this->running = false;
    }

    /** @return never */
    private static function failed(string $program): void
    {
        fwrite(STDERR, "poolparty: $program does not start (Debian: apt install php-cgi)\n");
        exit(1);
    }

    /** @param array{script: string, name: string, path_info: string, root: string} $target */
    public function answer(Request $request, array $target): Response
    {
        if ($this->running) {
            $this->abandon(); // that of an answer which could not be sent
        }
        $this->running = true;
        $this->write(
            self::BEGIN
            . self::records(self::PARAMS, self::parameters(environment($request, $target)))
            . self::records(self::STDIN, $request->body)
        );
        $head = $this->output();
        while (!preg_match('~\r?\n\r?\n~', $head, $empty_line, PREG_OFFSET_CAPTURE)) {
            if (!$this->running) {
                throw new \RuntimeException("php-cgi answered without a head: " . substr($head, 0, 200));
            }
            $head .= $this->output();
        }
        [$line, $at] = $empty_line[0];
        [$status, $headers] = self::head(substr($head, 0, $at));
        $first = substr($head, $at + strlen($line)); // all of it, if the answer is small
        return new Response($status, $headers, $this->running ? $this->pieces($first) : $first);
    }

    /** @return array{int, array<string, list<string>>} */
    private static function head(string $head): array
    {
        $status = 200;
        $headers = [];
        foreach (preg_split('~\r?\n~', $head) as $line) {
            [$name, $value] = explode(':', $line, 2) + [1 => ''];
            if (strcasecmp($name, 'Status') === 0) {
                $status = (int) trim($value);
            } else {
                $headers[$name][] = trim($value);
            }
        }
        if ($status === 200 && isset($headers['Location'])) {
            $status = 302;
        }
        return [$status, $headers];
    }

    /** The pieces of what the script writes, until it has ended or nobody wants more. */
    private function pieces(string $first): \Generator
    {
        try {
            yield $first;
            while ($this->running) {
                yield $this->output();
            }
        } finally {
            if ($this->running) {
                $this->abandon();
            }
        }
    }

    /** What the script has written further; waits for it. */
    private function output(): string
    {
        while (($output = $this->received()) === '' && $this->running) {
            $this->readMore();
        }
        return $output;
    }

    /** What the script has written, of what was read; of errors, for the log. Notes its end. */
    private function received(): string
    {
        $output = '';
        $at = 0;
        while ($this->running && strlen($this->read) >= $at + 8) {
            ['type' => $type, 'size' => $size, 'padding' => $padding]
                = unpack('Cversion/Ctype/nid/nsize/Cpadding', $this->read, $at);
            if (strlen($this->read) < $at + 8 + $size + $padding) {
                break;
            }
            if ($type === self::STDOUT) {
                $output .= substr($this->read, $at + 8, $size);
            } elseif ($type === self::STDERR && $size > 0) {
                fwrite(STDERR, rtrim(substr($this->read, $at + 8, $size)) . "\n");
            } elseif ($type === self::END_REQUEST) {
                $this->running = false;
            }
            $at += 8 + $size + $padding;
        }
        $this->read = substr($this->read, $at);
        return $output;
    }

    private function readMore(): void
    {
        $piece = fread($this->connection, self::READ_SIZE);
        if ($piece === false || $piece === '') {
            $this->gone();
        }
        $this->read .= $piece;
    }

    /**
     * Nobody wants the rest of what the script writes, and the next request must not find it. Most scripts end soon;
     * another loses its connection, which aborts it at its next output, and php-cgi ends with it and is replaced.
     */
    private function abandon(): void
    {
        $end = microtime(true) + self::ABANDONED_TIMEOUT;
        while (($left = $end - microtime(true)) > 0) {
            $this->received();
            if (!$this->running) {
                return;
            }
            $reading = [$this->connection];
            $none = null;
            if (@stream_select($reading, $none, $none, 0, (int) ($left * 1e6))) {
                $this->readMore();
            }
        }
        fclose($this->connection);
        $aborted = $this->process;
        proc_terminate($aborted); // php-cgi then ends with its request
        $this->start();
        $end = microtime(true) + self::ABORTED_TIMEOUT;
        while (proc_get_status($aborted)['running'] && microtime(true) < $end) {
            usleep(10000);
        }
        proc_terminate($aborted, 9);
        proc_close($aborted);
    }

    /** @return never */
    private function gone(): void
    {
        fwrite(STDERR, "poolparty: php-cgi has ended\n");
        exit(1); // the server gives the request another child, or says 502
    }

    /** A script may write much before it reads: so a large request is written as there is room, and read meanwhile. */
    private function write(string $data): void
    {
        if (strlen($data) <= self::SMALL) {
            @fwrite($this->connection, $data) === strlen($data) || $this->gone();
            return;
        }
        stream_set_blocking($this->connection, false);
        for ($at = 0; $at < strlen($data);) {
            $reading = $writing = [$this->connection];
            $none = null;
            stream_select($reading, $writing, $none, null);
            if ($reading) {
                $piece = fread($this->connection, self::READ_SIZE);
                if ($piece === false || $piece === '' && feof($this->connection)) {
                    $this->gone();
                }
                $this->read .= $piece; // which may be nothing
            }
            if ($writing) {
                $written = @fwrite($this->connection, substr($data, $at, self::READ_SIZE));
                if ($written === false) {
                    $this->gone();
                }
                $at += $written;
            }
        }
        stream_set_blocking($this->connection, true);
    }

    /** A stream of the protocol: its records, and the empty one that ends it. Or what is no stream: the record alone. */
    private static function records(int $type, string $content, bool $stream = true): string
    {
        $out = '';
        foreach ($content === '' ? [] : str_split($content, self::MAX_CONTENT) as $piece) {
            $out .= pack('CCnnCx', 1, $type, (int) $stream, strlen($piece), 0) . $piece;
        }
        return $stream ? $out . pack('CCnnCx', 1, $type, 1, 0, 0) : $out;
    }

    /** @param array<string, string> $pairs */
    private static function parameters(array $pairs): string
    {
        $out = '';
        foreach ($pairs as $name => $value) {
            foreach ([strlen($name), strlen($value)] as $size) {
                $out .= $size < 128 ? chr($size) : pack('N', $size | 0x80000000);
            }
            $out .= $name . $value;
        }
        return $out;
    }
}

/**
 * A request in CGI's words.
 *
 * @param array{script: string, name: string, path_info: string, root: string} $target
 * @return array<string, string>
 */
function environment(Request $request, array $target): array
{
    [$scheme, $rest] = explode('://', $request->uri, 2);
    preg_match('~^([^/?]*)(.*)$~s', $rest, $parts);
    preg_match('~^(.*?)(?::([0-9]*))?$~', $parts[1], $authority);
    $remote = preg_match('~^\[?(.*?)\]?:([0-9]*)$~', $request->remote_address, $found) ? $found : ['', '', ''];
    $environment = [
        'GATEWAY_INTERFACE' => 'CGI/1.1',
        'SERVER_SOFTWARE' => 'poolparty/' . \Poolparty\VERSION,
        'SERVER_PROTOCOL' => 'HTTP/1.1',
        'SERVER_NAME' => $authority[1] ?: 'localhost',
        'SERVER_PORT' => ($authority[2] ?? '') ?: ($scheme === 'https' ? '443' : '80'),
        'REQUEST_SCHEME' => $scheme,
        'REQUEST_METHOD' => $request->method,
        'REQUEST_URI' => $parts[2] ?: '/',
        'QUERY_STRING' => $request->query,
        'DOCUMENT_ROOT' => $target['root'],
        'SCRIPT_FILENAME' => $target['script'],
        'SCRIPT_NAME' => $target['name'],
        'REMOTE_ADDR' => $remote[1],
        'REMOTE_PORT' => $remote[2],
        'REDIRECT_STATUS' => '200', // php-cgi asks for it as a sign that a web server stands before it
        'CONTENT_LENGTH' => (string) strlen($request->body),
        'CONTENT_TYPE' => $request->header('Content-Type') ?? '',
    ];
    if ($scheme === 'https') {
        $environment['HTTPS'] = 'on';
    }
    if ($target['path_info'] !== '') {
        $environment['PATH_INFO'] = $target['path_info'];
        $environment['PATH_TRANSLATED'] = $target['root'] . $target['path_info'];
    }
    foreach ($request->headers as $name => $value) {
        $name = strtoupper(strtr((string) $name, '-', '_'));
        // Proxy would become HTTP_PROXY, which programs take for a setting of theirs. The last has been undone.
        if (!in_array($name, ['PROXY', 'CONTENT_TYPE', 'CONTENT_LENGTH', 'TRANSFER_ENCODING'], true)) {
            $environment["HTTP_$name"] = $value;
        }
    }
    return $environment;
}

if (($_SERVER['argv'][0] ?? '') === 'Standard input code') { // php -r
    serve($_SERVER['argv'][1] ?? 'index.php', array_slice($_SERVER['argv'], 2));
}
