# What test_every_library.py asks of a library; the same in every language.

use strict;
use warnings;
use Poolparty 'serve';

sub health_check {
    my $health = $ENV{TEST_HEALTH} // '';
    die "no database\n" if $health eq 'fail';
    die "\xc3\xbc" x 5000, "\n" if $health eq 'long';
}

sub pieces {
    my ($request) = @_;
    my @pieces = ("one\n", '', "\xff\n", do { use utf8; "grün\n" });
    return sub {
        die "this one fails\n" if !@pieces && $request->query_string eq 'fail';
        return shift @pieces;
    };
}

sub more { return bless [], 'Endless' }

sub Endless::getline { return "more\n" }

sub Endless::close { print "closed\n" }

# Runs until the file that the query names is there, and says where that begins.
sub spin {
    my ($request) = @_;
    print "spins\n";
    1 until -e $request->query_string;
    return 'stopped';
}

my %routes = (
    '/echo' => sub {
        my ($request) = @_;
        my $headers = [
            'Method'         => $request->method,
            'Uri'            => $request->uri,
            'Path'           => $request->path,
            'Query'          => $request->query_string,
            'Remote-Address' => $request->remote_address,
            'Headers'        => scalar keys %{ $request->headers },
        ];
        return [201, $headers, $request->body];
    },
    '/header' => sub { $_[0]->header($_[0]->query_string) // [404, [], 'none'] },
    '/text'   => sub { use utf8; "grün\n" },
    '/octets' => sub {
        return [200, ['Content-Type' => 'application/octet-stream'], pack('C*', 0 .. 255) x ($_[0]->query_string / 256)];
    },
    '/headers'           => sub { [200, ['Set-Cookie' => 'a=1', 'X-Long' => 'v' x 300, 'Set-Cookie' => 'b=2'], ''] },
    '/many-headers'      => sub { [200, { map { ("X-$_" => $_) } 0 .. 299 }, ''] },
    '/empty'             => sub { [204, undef, undef] },
    '/fail'              => sub { die 'this one fails' },
    '/bad-status'        => sub { [99, [], ''] },
    '/bad-header'        => sub { [200, { 'A' => {} }, ''] },
    '/bad-body'          => sub { [200, [], {}] },
    '/bad-answer'        => sub { undef },
    '/say'               => sub { print 'seen ', $_[0]->path, "\n"; '' },
    '/program'           => sub { scalar `cat | wc -c; test -e /proc/self/fd/3 && echo 3 is open` },
    '/spin'              => \&spin,
    '/leave'             => sub { exit 7 },
    '/stream'            => sub { [200, ['Content-Type' => 'text/plain'], pieces($_[0])] },
    '/endless'           => sub { [200, [], more()] },
    '/stream-nothing'    => sub { [200, [], sub { undef }] },
    '/stream-fail-first' => sub { [200, [], sub { die "this one fails\n" }] },
);

serve(sub { $routes{ $_[0]->path }->($_[0]) }, health_check => \&health_check);
