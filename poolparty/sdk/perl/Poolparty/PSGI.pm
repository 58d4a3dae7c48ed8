package Poolparty::PSGI;

# PSGI applications (Dancer2, Mojolicious, Catalyst, Plack's own middleware …), without Plack:
#
#     poolparty -- perl -MPoolparty::PSGI -e run app.psgi
#
# The application is loaded before the child is ready, so that no request waits for it. One request at a time:
# psgi.multithread is false, psgi.multiprocess true. Answers may be delayed and streamed.

use strict;
use warnings;

use Exporter 'import';
our @EXPORT    = ('run');
our @EXPORT_OK = ('serve_app');

use Poolparty ();

# Serve the application that the file named by the command line's next word returns.
sub run {
    my $file = shift @ARGV // 'app.psgi';
    $ENV{PLACK_ENV} //= 'deployment';    # what frameworks take for "run by a PSGI server"
    serve_app(load_app($file));
}

# Serve an application; the options are those of Poolparty::serve.
sub serve_app {
    my ($app, %options) = @_;
    Poolparty::serve(sub { _uncoded($app->(environment($_[0]))) }, %options);
}

# Mojolicious answers in chunks with the coding of HTTP/1.1 in the body: it is undone, for the framing is the server's.
sub _uncoded {
    my ($answer) = @_;
    return $answer if ref $answer ne 'ARRAY' || @$answer != 3;
    my ($status, $headers, $body) = @$answer;
    my %coded = map { lc $_ => 1 } grep { defined } @$headers;
    return $answer if !$coded{'transfer-encoding'} || !$coded{chunked};
    my @plain;
    for (my $at = 0; $at < @$headers; $at += 2) {
        push @plain, @$headers[$at, $at + 1] if lc $headers->[$at] ne 'transfer-encoding';
    }
    return [$status, \@plain, bless { source => $body, coded => '' }, 'Poolparty::PSGI::Chunks'];
}

# The application that a .psgi file returns: a sub, or an object with to_app or call.
sub load_app {
    my ($file) = @_;
    require File::Spec;
    my $path = File::Spec->rel2abs($file);
    die "poolparty: $file: $!\n" if !-r $path;
    local $0 = $path;    # what FindBin and frameworks look for the application's folder by
    my $app = do {
        package Poolparty::PSGI::Application;
        do $path;
    };
    die "poolparty: $file: " . ($@ || $!) if !defined $app;
    return $app if ref $app eq 'CODE';
    return $app->to_app if eval { $app->can('to_app') };
    return $app if eval { $app->can('call') || overload::Method($app, '&{}') };
    die "poolparty: $file returns no PSGI application (a sub), but '$app'\n";
}

# A request in PSGI's words. The frame has the body whole, so what coded it on its way is not told.
sub environment {
    my ($request) = @_;
    my $body = $request->body;
    my ($scheme, $authority, $target) = $request->uri =~ m{\A([^:/?]*)://([^/?]*)(.*)\z}s;
    my ($host, $port) = $authority =~ /\A(.*?)(?::([0-9]*))?\z/;
    my ($remote, $remote_port) = $request->remote_address =~ /\A\[?(.*?)\]?:([0-9]*)\z/;
    (my $path = $request->path) =~ s/%([0-9a-fA-F]{2})/chr hex $1/ge;
    open my $input, '<', \$body or die "poolparty: $!\n";

    my %environment = (
        REQUEST_METHOD  => $request->method,
        SCRIPT_NAME     => '',
        PATH_INFO       => $path,
        REQUEST_URI     => $target,
        QUERY_STRING    => $request->query_string,
        SERVER_NAME     => length $host ? $host : 'localhost',
        SERVER_PORT     => $port || ($scheme eq 'https' ? 443 : 80),
        SERVER_PROTOCOL => 'HTTP/1.1',
        SERVER_SOFTWARE => "poolparty/$Poolparty::VERSION",
        REMOTE_ADDR     => $remote // '',

        'psgi.version'      => [1, 1],
        'psgi.url_scheme'   => $scheme,
        'psgi.input'        => $input,
        'psgi.errors'       => \*STDERR,
        'psgi.multithread'  => !!0,
        'psgi.multiprocess' => !!1,
        'psgi.run_once'     => !!0,
        'psgi.nonblocking'  => !!0,
        'psgi.streaming'    => !!1,

        'psgix.input.buffered' => !!1,
    );
    $environment{REMOTE_PORT} = $remote_port if defined $remote_port;
    $environment{HTTPS}       = 'on'         if $scheme eq 'https';

    my $headers = $request->headers;
    for my $name (keys %$headers) {
        (my $key = uc $name) =~ tr/-/_/;
        $key = "HTTP_$key" if $key ne 'CONTENT_TYPE' && $key ne 'CONTENT_LENGTH';
        $environment{$key} = $headers->{$name};
    }
    delete $environment{HTTP_TRANSFER_ENCODING};
    $environment{CONTENT_LENGTH} //= length $body if length $body;
    return \%environment;
}

# What a body in chunks says, chunk by chunk; '' where its source has no more yet.
package Poolparty::PSGI::Chunks;

sub getline {
    my ($self) = @_;
    while (1) {
        if ($self->{coded} =~ /\A([0-9a-fA-F]+)[^\r\n]*\r\n/) {
            my ($start, $size) = ($+[0], hex $1);
            return if !$size;
            if (length $self->{coded} >= $start + $size + 2) {
                my $chunk = substr $self->{coded}, $start, $size;
                substr($self->{coded}, 0, $start + $size + 2) = '';
                return $chunk;
            }
        }
        my $source = $self->{source};
        my $more   = ref $source eq 'ARRAY' ? shift @$source : $source->getline;
        die "a body in chunks ends in the middle of one\n" if !defined $more;
        return '' if $more eq '';
        $self->{coded} .= $more;
    }
}

sub close {
    my $source = $_[0]{source};
    $source->close if ref $source ne 'ARRAY' && (ref $source eq 'GLOB' || $source->can('close'));
}

1;
