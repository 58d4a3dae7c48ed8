<?php

/**
 * The worker library for PHP programs (PHP 8.1 or later, php-cli), in PHP alone:
 *
 *     <?php
 *     require 'poolparty.php';
 *
 *     Poolparty\serve(fn ($request) => "hello\n");
 *
 * Runs in the child: requests arrive as frames on descriptor 0, answers leave on descriptor 3, stdout and stderr are
 * free for printing (docs/worker-protocol.md). Strings are bytes, as everywhere in PHP. What is read beyond one
 * request's end is kept by PHP's stream.
 */

declare(strict_types=1);

namespace Poolparty;

const VERSION = '0.1.0';

/**
 * Answer requests with $handler(Request) until the server closes the pipe; then return.
 *
 * The handler returns a string (200, text/plain; charset=utf-8) or a Response. What it throws is written to stderr
 * with its trace and answered `500 internal server error`; the process lives on. exit() and PHP's fatal errors end it.
 *
 * $health_check() is called now and then while no request runs. If it throws, this process is unwell and will be
 * replaced.
 */
function serve(callable $handler, ?callable $health_check = null): void
{
    (new Worker($handler, $health_check))->run();
}

/** One HTTP request. */
final class Request
{
    /** The uri's path, as it was sent: percent-encoded. */
    public readonly string $path;

    /** The uri's query, without "?"; "" if there is none. parse_str() takes it apart. */
    public readonly string $query;

    /** @var array<string, string>|null header() of names in lower case */
    private ?array $lower = null;

    /**
     * @param string $uri absolute: "http://example.org/path?query"
     * @param array<string, string> $headers by their names as the server wrote them (User-Agent); of a field that was
     *     sent several times the values are joined by ", " (Cookie: "; ")
     * @param string $remote_address "host:port" ("[::1]:4711" for IPv6)
     */
    public function __construct(
        public readonly string $method = 'GET',
        public readonly string $uri = 'http://localhost/',
        public readonly array $headers = [],
        public readonly string $body = '',
        public readonly string $remote_address = '127.0.0.1:0',
    ) {
        [$target, $query] = explode('?', $uri, 2) + [1 => ''];
        $scheme = strpos($target, '://');
        if ($scheme !== false) {
            $slash = strpos($target, '/', $scheme + 3);
            $target = $slash === false ? '/' : substr($target, $slash);
        }
        $this->path = $target;
        $this->query = $query;
    }

    /** A header field's value, whatever the case of $name; null if there is none. */
    public function header(string $name): ?string
    {
        return $this->headers[$name]
            ?? ($this->lower ??= array_change_key_case($this->headers))[strtolower($name)] ?? null;
    }
}

/** One HTTP response. No header is added but those the server owes (Content-Length, Date …). */
final class Response
{
    /**
     * @param int $status 200 to 599
     * @param array<string, string|list<string>> $headers a list for a field that stands several times
     * @param string|iterable<string> $body what is iterable (a generator, say) is sent piece by piece where the server
     *     can take it so, and collected where it cannot; when the client is found to have left it is asked for no
     *     more, and released, so that a generator's finally runs
     */
    public function __construct(
        public int $status = 200,
        public array $headers = [],
        public string|iterable $body = '',
    ) {
    }
}

/** The server broke the protocol, or has gone. @internal */
final class EndOfService extends \Error
{
}

/** @internal */
final class Worker
{
    private const HTTP_REQUEST = 0;
    private const HEALTH_CHECK_REQUEST = 1;
    private const STREAM_CANCEL = 3;

    private const HTTP_RESPONSE = "\0";
    private const READY = "\1";
    private const HEALTH_REPLY = "\2";
    private const RESPONSE_START = "\3";
    private const RESPONSE_CHUNK = "\4";
    private const RESPONSE_END = "\5";

    private const READ_SIZE = 65536; // a pipe's usual capacity: one read takes all there is
    private const LARGE_BODY = 65536; // from here on a second write beats joining, which copies the body
    private const MAX_FRAME_SIZE = 0x7fffffff;
    private const MAX_MESSAGE_SIZE = 1000; // of a health reply: a line of the log

    private const TEXT = "\xc8\x01\x01\x0cContent-Type\x01\x19text/plain; charset=utf-8";
    private const FAILED = "\x43\0\0\0\0\xf4\x03\x01\x0cContent-Type\x01\x19text/plain; charset=utf-8"
        . "\x16internal server error\n";

    /** @var resource */
    private $requests;

    /** @var resource */
    private $answers;

    /** @var resource what is open as descriptor 0 */
    private $null;

    private bool $replies = false;
    private bool $streams = false;
    private bool $cancels = false;

    /** What was read of the requests' pipe while a stream ran. */
    private string $behind = '';

    /** @var callable */
    private $handler;

    /** @var callable|null */
    private $health_check;

    public function __construct(callable $handler, ?callable $health_check)
    {
        $this->handler = $handler;
        $this->health_check = $health_check;
    }

    public function run(): void
    {
        $this->takeDescriptors();
        $this->prepareProcess();
        $offered = explode(',', getenv('POOLPARTY_FEATURES') ?: '');
        $ready = in_array('ready', $offered, true);
        $used = $ready ? array_values(array_intersect(['health-reply', 'stream'], $offered)) : [];
        if ($ready && in_array('stack', $offered, true) && self::showsStack()) {
            $used[] = 'stack';
        }
        if (in_array('stream', $used, true) && in_array('stream-cancel', $offered, true)) {
            $used[] = 'stream-cancel';
            $this->cancels = true;
        }
        $this->replies = in_array('health-reply', $used, true);
        $this->streams = in_array('stream', $used, true);
        try {
            if ($ready) {
                $this->write(
                    self::sized(self::READY . self::uint(count($used)) . implode('', array_map(self::string(...), $used)))
                );
            }
            while (($payload = $this->nextPayload()) !== null) {
                $at = 0;
                $tag = self::decodeUint($payload, $at);
                if ($tag === self::HTTP_REQUEST) {
                    $this->answer(self::decodeRequest($payload, $at));
                } elseif ($tag === self::HEALTH_CHECK_REQUEST) {
                    $this->checkHealth();
                } elseif ($tag !== self::STREAM_CANCEL) { // which is one of a stream that has ended meanwhile
                    throw new EndOfService("a request of a kind this library does not know ($tag)");
                }
            }
        } catch (EndOfService $end) {
            if ($end->getMessage() !== '') {
                fwrite(STDERR, "poolparty: {$end->getMessage()}\n");
                exit(1);
            }
        }
    }

    // ---- Answering.

    private function answer(Request $request): void
    {
        try {
            $answer = ($this->handler)($request);
            if (is_string($answer)) {
                $frame = self::framed(self::TEXT, $answer);
            } elseif ($answer instanceof Response) {
                $head = self::head($answer);
                $body = $answer->body;
                if (!is_string($body) && !$this->streams) {
                    $body = self::collected($body);
                }
                $frame = is_string($body) ? self::framed($head, $body) : null;
            } else {
                throw new \TypeError('a handler returns a string or a Response, not ' . get_debug_type($answer));
            }
        } catch (EndOfService $end) {
            throw $end;
        } catch (\Throwable $error) {
            self::report("$request->method $request->uri failed", $error);
            $frame = [self::FAILED];
        }
        unset($answer); // so that nothing but $body holds what is streamed
        if ($frame === null) {
            $this->stream($request, $head, $body);
        } else {
            $this->write(...$frame);
        }
    }

    /** The bytes between the response's tag and its body. */
    private static function head(Response $response): string
    {
        if ($response->status < 200 || $response->status > 599) {
            throw new \ValueError("a response's status is an int from 200 to 599, not $response->status");
        }
        $out = self::uint($response->status) . self::uint(count($response->headers));
        foreach ($response->headers as $name => $value) {
            $values = is_array($value) ? $value : [$value];
            $out .= self::string((string) $name) . self::uint(count($values)); // PHP has made an int of the key "1"
            foreach ($values as $each) {
                if (!is_string($each)) {
                    $type = get_debug_type($each);
                    throw new \TypeError("the response header $name is a string or a list of strings, not $type");
                }
                $out .= self::string($each);
            }
        }
        return $out;
    }

    /** @param iterable<string> $body */
    private static function collected(iterable $body): string
    {
        $whole = '';
        foreach ($body as $piece) {
            $whole .= $piece;
        }
        return $whole;
    }

    /**
     * An error before the first piece is answered as any other. Later the only way to tell the client that its answer
     * is not whole is to end without ResponseEnd.
     *
     * @param iterable<string> $body released, and so closed, before the end is told
     */
    private function stream(Request $request, string $head, iterable &$body): void
    {
        $started = false;
        $next = 0; // where in $behind the next frame begins that was not looked at
        stream_set_blocking($this->requests, !$this->cancels);
        try {
            foreach ($body as $piece) {
                if ($started && $this->cancels && $this->isCancelled($next)) {
                    break;
                }
                if ($piece === '') {
                    continue;
                }
                $start = self::RESPONSE_CHUNK . self::uint(strlen($piece));
                $frame = pack('V', strlen($start) + strlen($piece)) . $start . $piece;
                if (!$started) {
                    $this->write(self::sized(self::RESPONSE_START . $head));
                    $started = true;
                }
                $this->write($frame);
            }
            $body = null;
        } catch (EndOfService $end) {
            throw $end;
        } catch (\Throwable $error) {
            self::report("$request->method $request->uri failed", $error);
            if ($started) {
                exit(1);
            }
            $this->write(self::FAILED);
            return;
        } finally {
            stream_set_blocking($this->requests, true);
        }
        $this->write(...($started ? [self::sized(self::RESPONSE_END)] : self::framed($head, '')));
    }

    /** Whether a StreamCancel stands behind the request that runs, or nothing will come any more. Waits for nothing. */
    private function isCancelled(int &$next): bool
    {
        while (($piece = fread($this->requests, self::READ_SIZE)) !== '' && $piece !== false) {
            $this->behind .= $piece;
        }
        while (strlen($this->behind) >= $next + 5) {
            if (ord($this->behind[$next + 4]) === self::STREAM_CANCEL) {
                return true;
            }
            $next += 4 + unpack('V', $this->behind, $next)[1];
        }
        return feof($this->requests);
    }

    private function checkHealth(): void
    {
        $ok = "\1";
        $message = '';
        try {
            if ($this->health_check !== null) {
                ($this->health_check)();
            }
        } catch (\Throwable $error) {
            self::report('the health check failed', $error);
            if (!$this->replies) {
                exit(1); // to a server that wants no reply an unwell process says so by ending
            }
            $ok = "\0";
            $message = self::utf8(get_class($error) . ': ' . $error->getMessage());
        }
        if ($this->replies) {
            $this->write(self::sized(self::HEALTH_REPLY . $ok . self::string($message)));
        }
    }

    /** As much of the text as fits a message; what is not UTF-8, or was cut in the middle, is "?". */
    private static function utf8(string $text): string
    {
        $text = substr($text, 0, self::MAX_MESSAGE_SIZE);
        return preg_match('//u', $text) === 1 ? $text : preg_replace('/[\x80-\xff]/', '?', $text);
    }

    private static function report(string $what, \Throwable $error): void
    {
        @fwrite(STDERR, "poolparty: $what\n$error\n");
    }

    // ---- Bytes.

    private static function uint(int $number): string
    {
        $out = '';
        while ($number > 127) {
            $out .= chr($number & 127 | 128);
            $number >>= 7;
        }
        return $out . chr($number);
    }

    private static function string(string $data): string
    {
        return self::uint(strlen($data)) . $data;
    }

    private static function sized(string $message): string
    {
        return pack('V', strlen($message)) . $message;
    }

    /**
     * The frame of a whole response, in one piece or two.
     *
     * @return list<string>
     */
    private static function framed(string $head, string $body): array
    {
        $start = self::HTTP_RESPONSE . $head . self::uint(strlen($body));
        $size = strlen($start) + strlen($body);
        if ($size > self::MAX_FRAME_SIZE) {
            throw new \ValueError("a response of $size bytes is larger than a frame can be");
        }
        $start = pack('V', $size) . $start;
        return strlen($body) < self::LARGE_BODY ? [$start . $body] : [$start, $body];
    }

    private static function decodeUint(string $payload, int &$at): int
    {
        $number = $shift = 0;
        do {
            $byte = ord($payload[$at++] ?? throw new EndOfService('a message goes on beyond its frame'));
            $number |= ($byte & 127) << $shift;
            $shift += 7;
            if ($shift > 70) {
                throw new EndOfService('a number of more than ten bytes');
            }
        } while ($byte > 127);
        return $number;
    }

    private static function decodeString(string $payload, int &$at): string
    {
        $size = self::decodeUint($payload, $at);
        if ($size > strlen($payload) - $at) {
            throw new EndOfService('a message goes on beyond its frame');
        }
        $at += $size;
        return substr($payload, $at - $size, $size);
    }

    private static function decodeRequest(string $payload, int $at): Request
    {
        $remote_address = self::decodeString($payload, $at);
        $uri = self::decodeString($payload, $at);
        $method = self::decodeString($payload, $at);
        $headers = [];
        for ($count = self::decodeUint($payload, $at); $count > 0; $count--) {
            $name = self::decodeString($payload, $at);
            $headers[$name] = self::decodeString($payload, $at);
        }
        $body = self::decodeString($payload, $at);
        if ($at !== strlen($payload)) {
            throw new EndOfService('bytes are left behind a message');
        }
        return new Request($method, $uri, $headers, $body, $remote_address);
    }

    // ---- The process.

    private function nextPayload(): ?string
    {
        $size = $this->read(4);
        return strlen($size) === 4 ? $this->readWhole(unpack('V', $size)[1]) : null;
    }

    private function readWhole(int $size): ?string
    {
        $payload = $this->read($size);
        return strlen($payload) === $size ? $payload : null;
    }

    /** $size bytes, or less at the pipe's end. */
    private function read(int $size): string
    {
        $data = '';
        if ($this->behind !== '') {
            $data = substr($this->behind, 0, $size);
            $this->behind = substr($this->behind, $size);
        }
        while (($missing = $size - strlen($data)) > 0) {
            $piece = fread($this->requests, $missing);
            if ($piece === false || $piece === '') {
                break;
            }
            $data .= $piece;
        }
        return $data;
    }

    private function write(string ...$pieces): void
    {
        foreach ($pieces as $piece) {
            $at = 0;
            while ($at < strlen($piece)) {
                $written = @fwrite($this->answers, $at === 0 ? $piece : substr($piece, $at));
                if ($written === false) {
                    throw new EndOfService(''); // the server has gone: nobody is left to be answered
                }
                $at += $written;
            }
        }
    }

    /**
     * Take the two pipes so that no program which a handler starts inherits them: it finds /dev/null on its standard
     * input, and so does whatever reads php://stdin here. PHP cannot mark a descriptor as not to be inherited: that is
     * left to FFI, where php-cli has it; without it such a program has the pipes too, by numbers it does not know.
     */
    private function takeDescriptors(): void
    {
        $is_pipe = static fn (int $number): bool => ((@stat("/dev/fd/$number")['mode'] ?? 0) & 0170000) === 0010000;
        if (PHP_SAPI !== 'cli' || !$is_pipe(0) || !$is_pipe(3)) {
            $program = $_SERVER['argv'][0] ?? 'app.php';
            fwrite(
                fopen('php://stderr', 'w'),
                "poolparty: descriptors 0 and 3 are not the server's pipes. "
                . "This program is started by the server: poolparty -- php $program\n"
            );
            exit(1);
        }
        $pipes = [readlink('/dev/fd/0'), readlink('/dev/fd/3')];
        $this->requests = fopen('php://fd/0', 'r');
        $this->answers = fopen('php://fd/3', 'w');
        stream_set_chunk_size($this->requests, self::READ_SIZE);
        fclose(STDIN);
        $this->null = fopen('/dev/null', 'r'); // takes the number 0
        if (extension_loaded('ffi')) {
            try {
                $libc = \FFI::cdef('int fcntl(int, int, ...);');
            } catch (\FFI\Exception) {
                return; // switched off
            }
            foreach (scandir('/dev/fd') as $number) {
                if (in_array(@readlink("/dev/fd/$number"), $pipes, true)) {
                    $libc->fcntl((int) $number, 2 /* F_SETFD */, 1 /* FD_CLOEXEC */);
                }
            }
        }
    }

    private function prepareProcess(): void
    {
        // A terminal's Ctrl-C is for the server, which then drains: this process ends when its pipe does. A handler
        // and not SIG_IGN, because programs started from here would inherit that.
        if (function_exists('pcntl_signal') && pcntl_signal_get_handler(SIGINT) === SIG_DFL) {
            pcntl_signal(SIGINT, static function (): void {
            });
        }
        set_time_limit(0);
    }

    /**
     * Have SIGUSR1 write the program's stack to stderr: whether it does. It needs the extension pcntl; a program that
     * has a use of its own for the signal keeps it. PHP calls this between two instructions; reads are started again.
     */
    private static function showsStack(): bool
    {
        if (!function_exists('pcntl_async_signals') || pcntl_signal_get_handler(SIGUSR1) !== SIG_DFL) {
            return false;
        }
        pcntl_async_signals(true);
        return pcntl_signal(SIGUSR1, static function (): void {
            $text = "poolparty: the program's stack\n";
            // The first frame is this function's, called where the program was.
            foreach (debug_backtrace(DEBUG_BACKTRACE_IGNORE_ARGS) as $at => $frame) {
                $what = $at === 0 ? 'at' : "{$frame['function']}() called at";
                $text .= "    $what " . ($frame['file'] ?? '?') . ':' . ($frame['line'] ?? '?') . "\n";
            }
            @fwrite(STDERR, $text);
        });
    }
}
