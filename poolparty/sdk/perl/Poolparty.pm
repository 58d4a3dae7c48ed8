package Poolparty;

# The worker library for Perl programs, in Perl alone:
#
#     use Poolparty 'serve';
#
#     serve(sub { my ($request) = @_; return "hello\n" });
#
# Runs in the child: requests arrive as frames on descriptor 0, answers leave on descriptor 3, stdout and stderr are
# free for printing (docs/worker-protocol.md). Modules that an error or a stream needs are loaded then: the start of
# every child pays for what stands here.

use strict;
use warnings;

our $VERSION = '0.1.0';

use Exporter 'import';
our @EXPORT_OK = ('serve');

use constant {
    HTTP_REQUEST => 0, HEALTH_CHECK_REQUEST => 1, STREAM_CANCEL => 3,

    HTTP_RESPONSE => 0, READY => 1, HEALTH_REPLY => 2, RESPONSE_START => 3, RESPONSE_CHUNK => 4, RESPONSE_END => 5,

    READ_SIZE        => 65536,         # a pipe's usual capacity: one read takes all there is
    LARGE_BODY       => 65536,         # from here on a second write beats joining, which copies the body
    MAX_FRAME_SIZE   => 0x7fffffff,
    MAX_MESSAGE_SIZE => 1000,          # of a health reply: a line of the log
};

my $TYPE    = "\x0cContent-Type\x01";
my $TEXT    = "\xc8\x01\x01${TYPE}\x19text/plain; charset=utf-8";
my $FAILED  = _sized("\x00\xf4\x03\x01${TYPE}\x19text/plain; charset=utf-8\x16internal server error\n");

my ($requests, $answers, $replies, $streams, $cancels);

# serve(\&handler, health_check => \&check): answer requests with handler($request) until the server closes the pipe;
# then return.
#
# The handler returns a string (200, text/plain; charset=utf-8) or, as in PSGI, [$status, $headers, $body]: headers an
# array of names and values, a hash of names to a string or an array of strings, or undef; body a string, an array of
# strings, undef, a file handle or object with getline (and close), or a sub that gives the next piece at each call
# and undef at the end. The last two are sent piece by piece where the server can take them so, and collected where
# it cannot. Or the answer is, again as in PSGI, a sub, which is called with another one to give the answer to: the
# three as above, or [$status, $headers] and then the body to the ->write and ->close of what it returns. When the
# client is found to have left, no more pieces are asked for, and ->write dies of a Poolparty::Cancelled. A string that
# Perl holds as characters leaves as UTF-8, one of bytes as it is. What a handler dies of is written to stderr with a
# trace and answered `500 internal server error`; the process lives on.
#
# health_check->() is called now and then while no request runs. If it dies, this process is unwell and will be
# replaced.
sub serve {
    my ($handler, %options) = @_;
    _take_descriptors();
    _prepare_process();
    my %offered = map { $_ => 1 } split /,/, $ENV{POOLPARTY_FEATURES} // '';
    my @used    = $offered{ready} ? grep { $offered{$_} } qw(health-reply stream) : ();
    $streams = grep { $_ eq 'stream' } @used;
    $cancels = $streams && $offered{'stream-cancel'};
    push @used, 'stream-cancel' if $cancels;
    push @used, 'stack' if $offered{ready} && $offered{stack} && _shows_stack();
    $replies = grep { $_ eq 'health-reply' } @used;
    my $served = eval {
        _write(_sized(chr(READY) . _uint(scalar @used) . join '', map { _string($_) } @used)) if $offered{ready};
        while (defined(my $payload = _next_payload())) {
            my $at  = 0;
            my $tag = _decode_uint($payload, $at);
            if ($tag == HTTP_REQUEST) {
                _answer($handler, _decode_request($payload, $at));
            }
            elsif ($tag == HEALTH_CHECK_REQUEST) {
                _check_health($options{health_check});
            }
            elsif ($tag != STREAM_CANCEL) {    # which is one of a stream that has ended meanwhile
                _broken("a request of a kind this library does not know ($tag)");
            }
        }
        1;
    };
    return if $served || ref $@ eq 'Poolparty::ServerGone';
    die $@;
}

# ---- Answering.

sub _answer {
    my ($handler, $request) = @_;
    my ($answer, $head, $body, @frame);
    my $good = _try(sub {
        $answer = $handler->($request);
        return 1 if ref $answer eq 'CODE';
        ($head, $body) = _response($answer);
        $body  = _collect($body) if ref $body && !$streams;
        @frame = _framed($head, $body) if !ref $body;
        1;
    });
    return _failed($request) if !$good;
    return _write(@frame) if @frame;
    return ref $answer eq 'CODE' ? _delayed($request, $answer) : _stream($request, $head, $body);
}

# After an error, before anything of the answer has been sent.
sub _failed {
    my ($request) = @_;
    _report($request->method . ' ' . $request->uri . ' failed', $@);
    _write($FAILED);
}

sub _delayed {
    my ($request, $answer) = @_;
    my ($head, $body, $writer);
    my $respond = sub {
        my ($given) = @_;
        die "the answer has been given already\n" if defined $head;
        if (ref $given eq 'ARRAY' && @$given == 2) {
            ($head) = _response([@$given, '']);
            return $writer = Poolparty::Writer->new($head);
        }
        ($head, $body) = _response($given);
        return;
    };
    my $good = _try(sub {
        ANSWER: { $answer->($respond) }
        die "a handler has returned a sub that gave no answer\n" if !defined $head;
        $body = _collect($body) if ref $body && !$streams;
        $writer->close if $writer;
        1;
    });
    if ($writer && $writer->{started}) {
        return if $good;
        return $writer->close if ref $@ eq 'Poolparty::Cancelled';
        _report($request->method . ' ' . $request->uri . ' failed', $@);
        exit 1;
    }
    return _failed($request) if !$good;
    return _stream($request, $head, $body) if ref $body;
    return _write(_framed($head, $writer ? $writer->{whole} : $body));
}

# The bytes between the response's tag and its body, and the body: a string, or a sub that gives its pieces.
sub _response {
    my ($answer) = @_;
    if (defined $answer && !ref $answer) {
        return ($TEXT, _octets($answer));
    }
    if (ref $answer ne 'ARRAY' || @$answer != 3) {
        die 'a handler returns a string or [status, headers, body], not ' . _shown($answer) . "\n";
    }
    my ($status, $headers, $body) = @$answer;
    if (!defined $status || $status !~ /\A[2-5][0-9][0-9]\z/) {
        die "a response's status is a number from 200 to 599, not " . _shown($status) . "\n";
    }
    return (_uint($status) . _headers($headers), _body($body));
}

sub _headers {
    my ($headers) = @_;
    my (@names, %values);
    if (!defined $headers) { }
    elsif (ref $headers eq 'HASH') {
        @names  = keys %$headers;
        %values = map { $_ => ref $headers->{$_} eq 'ARRAY' ? $headers->{$_} : [$headers->{$_}] } @names;
    }
    elsif (ref $headers eq 'ARRAY' && @$headers % 2 == 0) {
        for (my $at = 0; $at < @$headers; $at += 2) {
            my $name = $headers->[$at];
            push @names, $name if !$values{$name};
            push @{ $values{$name} }, $headers->[$at + 1];
        }
    }
    else {
        die "a response's headers are a hash, or an array of names and values, not " . _shown($headers) . "\n";
    }
    my $out = _uint(scalar @names);
    for my $name (@names) {
        my $values = $values{$name};
        if (grep { !defined || ref } @$values) {
            die "the response header $name is a string or an array of strings\n";
        }
        $out .= _string($name) . _uint(scalar @$values) . join '', map { _string($_) } @$values;
    }
    return $out;
}

sub _body {
    my ($body) = @_;
    return ''             if !defined $body;
    return _octets($body) if !ref $body;
    return join '', map { defined ? _octets($_) : '' } @$body if ref $body eq 'ARRAY';
    return $body if ref $body eq 'CODE';
    if (ref $body eq 'GLOB' || eval { $body->can('getline') }) {
        require IO::Handle;
        return Poolparty::Lines->pieces($body);
    }
    die "a response's body is a string, an array of strings, a file handle or a sub, not " . _shown($body) . "\n";
}

# The frame of a whole response, in one piece or two.
sub _framed {
    my ($head, $body) = @_;
    my $start = chr(HTTP_RESPONSE) . $head . _uint(length $body);
    my $size  = length($start) + length $body;
    die "a response of $size bytes is larger than a frame can be\n" if $size > MAX_FRAME_SIZE;
    $start = pack('V', $size) . $start;
    return length $body < LARGE_BODY ? $start . $body : ($start, $body);
}

sub _collect {
    my ($pieces) = @_;
    my $whole = '';
    while (defined(my $piece = $pieces->())) {
        $whole .= _octets($piece);
    }
    return $whole;
}

# An error before the first piece is answered as any other. Later the only way to tell the client that its answer is
# not whole is to end without ResponseEnd.
sub _stream {
    my ($request, $head, $pieces) = @_;
    my $writer = Poolparty::Writer->new($head);
    while (!$writer->cancelled) {
        my $piece;
        if (!_try(sub { $piece = $pieces->(); 1 })) {
            return _failed($request) if !$writer->{started};
            _report($request->method . ' ' . $request->uri . ' failed', $@);
            exit 1;
        }
        last if !defined $piece;
        $writer->send($piece);
    }
    $writer->close;
    return _write(_framed($head, '')) if !$writer->{started};
}

sub _check_health {
    my ($check) = @_;
    my ($ok, $message) = (1, '');
    if ($check && !_try(sub { $check->(); 1 })) {
        $ok      = 0;
        $message = "$@";
        _report('the health check failed', $@);
        exit 1 if !$replies;    # to a server that wants no reply an unwell process says so by ending
        $message =~ s/\s+\z//;
        $message = substr _octets($message), 0, MAX_MESSAGE_SIZE;
        # The cut may have halved a character, and what the message quotes may not be UTF-8 at all.
        $message =~ s/[\xc0-\xff][\x80-\xbf]*\z// if !utf8::decode(my $cut = $message);
        $message =~ tr/\x00-\x7f/?/c                if !utf8::decode(my $whole = $message);
    }
    _write(_sized(chr(HEALTH_REPLY) . chr($ok) . _string($message))) if $replies;
}

# ---- Bytes.

sub _octets {
    my ($text) = @_;
    utf8::encode($text) if utf8::is_utf8($text);
    return $text;
}

sub _uint {
    my ($number) = @_;
    my $out = '';
    while ($number > 127) {
        $out .= chr($number & 127 | 128);
        $number >>= 7;
    }
    return $out . chr $number;
}

sub _string {
    my $data = _octets($_[0]);
    return _uint(length $data) . $data;
}

sub _sized {
    return pack('V', length $_[0]) . $_[0];
}

sub _broken {
    my ($why) = @_;
    print STDERR "poolparty: $why\n";
    exit 1;
}

# These two read $_[0] from $_[1] on, and leave $_[1] behind what they have read.
sub _decode_uint {
    my $number = my $shift = 0;
    while (1) {
        _broken('a message goes on beyond its frame') if $_[1] >= length $_[0];
        my $byte = ord substr $_[0], $_[1]++, 1;
        return $number | $byte << $shift if $byte < 128;
        $number |= ($byte & 127) << $shift;
        $shift += 7;
        _broken('a number of more than ten bytes') if $shift > 63;
    }
}

# So many strings. Nearly every length is one byte: to call _decode_uint for each would double the time this takes.
sub _decode_strings {
    my $end = length $_[0];
    my @strings;
    for (1 .. $_[2]) {
        my $size = $_[1] < $end ? ord substr $_[0], $_[1]++, 1 : _broken('a message goes on beyond its frame');
        if ($size > 127) {
            $_[1]--;
            $size = &_decode_uint;
        }
        _broken('a message goes on beyond its frame') if $size > $end - $_[1];
        push @strings, substr $_[0], $_[1], $size;
        $_[1] += $size;
    }
    return @strings;
}

sub _decode_request {
    my (undef, $at) = @_;
    my %request;
    @request{qw(remote_address uri method)} = _decode_strings($_[0], $at, 3);
    my %headers = _decode_strings($_[0], $at, 2 * _decode_uint($_[0], $at));
    $request{headers} = \%headers;
    ($request{body}) = _decode_strings($_[0], $at, 1);
    _broken('bytes are left behind a message') if $at != length $_[0];
    return bless \%request, 'Poolparty::Request';
}

# ---- The process.

# What has been read of the pipe beyond the last request is the beginning of the next.
my $buffer = '';

sub _next_payload {
    my $size;
    while (1) {
        if (length $buffer >= 4) {
            $size //= unpack 'V', $buffer;
            last if length $buffer >= 4 + $size;
        }
        my $missing = defined $size ? 4 + $size - length $buffer : 0;
        my $got     = sysread $requests, $buffer, $missing > READ_SIZE ? $missing : READ_SIZE, length $buffer;
        next   if !defined $got && $!{EINTR};
        return if !$got;
    }
    my $payload = substr $buffer, 4, $size;
    substr($buffer, 0, 4 + $size) = '';
    return $payload;
}

# Whether a StreamCancel stands behind the request that runs, or nothing will come any more. $_[0] is where in the
# buffer the next frame begins that was not looked at.
sub _cancelled {
    vec(my $pipe = '', fileno $requests, 1) = 1;
    while (select(my $ready = $pipe, undef, undef, 0) > 0) {
        my $got = sysread $requests, $buffer, READ_SIZE, length $buffer;
        return 1 if defined $got && !$got;
    }
    while (length $buffer >= $_[0] + 5) {
        return 1 if ord substr($buffer, $_[0] + 4, 1) == STREAM_CANCEL;
        $_[0] += 4 + unpack 'V', substr $buffer, $_[0], 4;
    }
    return 0;
}

sub _write {
    for my $piece (@_) {
        my $at = 0;
        while ($at < length $piece) {
            my $written = syswrite $answers, $piece, length($piece) - $at, $at;
            if (defined $written) {
                $at += $written;
            }
            elsif (!$!{EINTR}) {
                die bless {}, 'Poolparty::ServerGone' if $!{EPIPE};
                die "poolparty: descriptor 3 cannot be written: $!\n";
            }
        }
    }
}

# Take the two pipes so that no program which a handler starts inherits them: it finds /dev/null on its standard
# input, and so does whatever reads STDIN here. Perl marks what it opens beyond $^F (2) as not to be inherited.
sub _take_descriptors {
    if (!(-p STDIN || -S STDIN) || !open($answers, '>&', 3) || !(-p $answers || -S $answers)) {
        print STDERR "poolparty: descriptors 0 and 3 are not the server's pipes. "
            . "This program is started by the server: poolparty -- perl $0\n";
        exit 1;
    }
    open $requests, '<&', \*STDIN or die "poolparty: descriptor 0: $!\n";
    open my $inherited, '>&=', 3 or die "poolparty: descriptor 3: $!\n";
    close $inherited;
    open STDIN, '<', '/dev/null' or die "poolparty: /dev/null: $!\n";
    binmode $_ for $requests, $answers;
}

sub _prepare_process {
    # A terminal's Ctrl-C is for the server, which then drains: this process ends when its pipe does. Subs and not
    # 'IGNORE', because programs started from here would inherit that.
    $SIG{INT}  //= sub { };
    $SIG{PIPE} //= sub { };
    # To a pipe Perl would write when its buffer is full: the log would show lines minutes late.
    my $selected = select STDOUT;
    $| = 1;
    select $selected;
}

# Have SIGUSR1 write the program's stack to stderr: whether it does. A program that has a use of its own for the signal
# keeps it. System calls that can be are started again, and the stack is written when Perl comes to its next
# instruction: a signal in the middle of one would not be safe, and a read that fails for it a disturbance.
sub _shows_stack {
    return 0 if ($SIG{USR1} // '') !~ /\A(?:DEFAULT)?\z/;
    require POSIX;
    my $action = POSIX::SigAction->new(\&_write_stack, POSIX::SigSet->new, POSIX::SA_RESTART());
    $action->safe(1);
    return defined POSIX::sigaction(POSIX::SIGUSR1(), $action);
}

sub _write_stack {
    local ($@, $!, $?);
    my ($frames, $depth) = ('', 0);
    while (my (undef, $file, $line, $sub) = caller $depth) {
        my $what = $depth++ ? "$sub called at" : 'at';
        next if $depth == 2 && $sub eq '(eval)'; # in which Perl calls a signal's handler
        if ($file eq __FILE__) {
            last if $frames; # what called the program; before, what the program has called of ours
            next;
        }
        $frames .= "    $what $file line $line\n";
    }
    print STDERR "poolparty: the program's stack\n$frames";
}

# eval, after which a trace of the error in $@ stands in $trace. A program that has a handler of its own for errors
# (Carp::Always, say) keeps it.
my ($traced, $trace);

sub _try {
    my ($code) = @_;
    local $SIG{__DIE__} = \&_trace if !$SIG{__DIE__};
    undef $traced;
    my $good = eval { $code->() };
    die $@ if !$good && ref $@ eq 'Poolparty::ServerGone';
    return $good;
}

# Called for every error, also for those that the program catches: so only what stands on the stack is kept.
sub _trace {
    ($traced, $trace) = ($_[0], '');
    my $depth = 1;
    while (my (undef, $file, $line, $sub) = caller $depth++) {
        last if $file eq __FILE__;
        $trace .= "    $sub called at $file line $line\n";
    }
}

sub _report {
    my ($what, $error) = @_;
    my $text = "$error";
    $text .= "\n" if $text !~ /\n\z/;
    $text .= $trace if defined $traced && $traced eq $error;
    print STDERR "poolparty: $what\n$text";
}

sub _shown {
    my ($value) = @_;
    return defined $value ? substr "'$value'", 0, 200 : 'undef';
}

# What takes a body piece by piece. Nothing is sent before the first; where the server takes no streams all is kept.
package Poolparty::Writer;

sub new {
    my ($class, $head) = @_;
    return bless { head => $head, whole => '', started => 0, closed => 0, behind => 0, told => 0 }, $class;
}

# Whether the server does not want the rest of it any more, or is gone. Waits for nothing.
sub cancelled {
    my ($self) = @_;
    return $self->{started} && $cancels && Poolparty::_cancelled($self->{behind});
}

sub write {
    my ($self, $piece) = @_;
    die "the answer has been closed already\n" if $self->{closed};
    if ($self->cancelled) {
        # What catches the error and goes on, as Dancer2 does, is left by other means.
        no warnings 'exiting';
        last ANSWER if $self->{told}++;
        # Loaded only now, as all that few processes need.
        eval q{package Poolparty::Cancelled; use overload '""' => sub { 'the client has left' }, fallback => 1};
        die bless {}, 'Poolparty::Cancelled';
    }
    return $self->send($piece);
}

sub send {
    my ($self, $piece) = @_;
    $piece = Poolparty::_octets($piece);
    return 1 if $piece eq '';
    if (!$streams) {
        $self->{whole} .= $piece;
        return 1;
    }
    my $start = chr(Poolparty::RESPONSE_CHUNK) . Poolparty::_uint(length $piece);
    Poolparty::_write(Poolparty::_sized(chr(Poolparty::RESPONSE_START) . $self->{head})) if !$self->{started};
    $self->{started} = 1;
    Poolparty::_write(pack('V', length($start) + length $piece) . $start . $piece);
    return 1;
}

sub close {
    my ($self) = @_;
    Poolparty::_write(Poolparty::_sized(chr Poolparty::RESPONSE_END)) if $self->{started} && !$self->{closed};
    $self->{closed} = 1;
}

# One HTTP request. All are strings of bytes:
#
#   method            'GET', …
#   uri               absolute: 'http://example.org/path?query'
#   path              the uri's, as it was sent: percent-encoded
#   query_string      the uri's, without '?'; '' if there is none
#   header($name)     a header field's value, whatever the case of $name; undef if there is none. Of a field that was
#                     sent several times the values are joined by ', ' (Cookie: '; ')
#   headers           all of them: a reference to a hash, by their names as the server wrote them (User-Agent)
#   body
#   remote_address    'host:port' ('[::1]:4711' for IPv6)
package Poolparty::Request;

# A request made by hand, to try a handler without a server: Poolparty::Request->new(method => 'POST', …).
sub new {
    my ($class, %fields) = @_;
    return bless {
        method         => 'GET',
        uri            => 'http://localhost/',
        headers        => {},
        body           => '',
        remote_address => '127.0.0.1:0',
        %fields
    }, $class;
}

sub method         { return $_[0]{method} }
sub uri            { return $_[0]{uri} }
sub headers        { return $_[0]{headers} }
sub body           { return $_[0]{body} }
sub remote_address { return $_[0]{remote_address} }
sub path           { return $_[0]{path}         // $_[0]->_split->{path} }
sub query_string   { return $_[0]{query_string} // $_[0]->_split->{query_string} }

sub header {
    my ($self, $name) = @_;
    return $self->{headers}{$name} if exists $self->{headers}{$name};
    $self->{lower} //= { map { lc $_ => $self->{headers}{$_} } keys %{ $self->{headers} } };
    return $self->{lower}{ lc $name };
}

sub _split {
    my ($self) = @_;
    my ($target, $query_string) = split /\?/, $self->{uri}, 2;
    $target =~ s{\A[^/]*://[^/]*}{};
    $self->{path}         = $target eq '' ? '/' : $target;
    $self->{query_string} = $query_string // '';
    return $self;
}

# The pieces of a file or of what behaves like one, read as PSGI says: by getline, with $/ the size of a piece; closed
# at the end, and when nobody asks for more.
package Poolparty::Lines;

sub pieces {
    my ($class, $handle) = @_;
    my $self = bless { handle => $handle }, $class;
    return sub {
        local $/ = \65536;
        my $piece = $self->{handle} ? $self->{handle}->getline : undef;
        $self->DESTROY if !defined $piece;
        return $piece;
    };
}

sub DESTROY {
    my ($self) = @_;
    my $handle = delete $self->{handle};
    $handle->close if $handle && (ref $handle eq 'GLOB' || $handle->can('close'));
}

1;
