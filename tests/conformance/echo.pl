# The echo application of docs/writing-a-worker.md, for `poolparty-ctl check --echo`.

use strict;
use warnings;

use Poolparty 'serve';

serve(sub {
    my ($request) = @_;
    my $path = $request->path;
    die "this page always fails\n" if $path eq '/fail';
    print "printed\n" if $path eq '/print';
    if ($path eq '/stream') {
        my @pieces = ("one\n", "two\n", "three\n");
        return [200, [], sub { shift @pieces }];
    }
    return [200, [], sub { "more\n" }] if $path eq '/endless';
    my $headers = $request->headers;
    my @fields = (
        'Echo-Method'         => $request->method,
        'Echo-Uri'            => $request->uri,
        'Echo-Remote-Address' => $request->remote_address,
        'Echo-Check'          => $request->header('x-check') // '',
        map { ('Echo-Headers' => "$_: $headers->{$_}") } keys %$headers,
    );
    return [200, \@fields, $request->body];
});
