# A Dancer2 application (Debian: apt install libdancer2-perl):
#
#     poolparty --max-pool-size 4 -- perl -MPoolparty::PSGI -e run examples/dancer2/app.psgi
#
# What a request shows of the adapter: routes, forms, uploads, cookies and sessions, templates, an error; and beside
# Dancer2, by PSGI's own means, a stream.

use strict;
use warnings;

package App;

use Dancer2;

set session => 'Simple';    # in memory, of one process: for several children another kind is needed

get '/' => sub { "Hello from Dancer2!\n" };

get '/hello/:name' => sub {
    my $name = route_parameters->get('name');
    $name =~ s/([<>&"'])/'&#' . ord($1) . ';'/ge;
    return "<h1>Hello, $name!</h1>\n";
};

post '/form' => sub { 'Hello, ' . (body_parameters->get('name') // 'nobody') . "!\n" };

post '/upload' => sub {
    my $file = upload('file');
    return $file->filename . ': ' . $file->size . " bytes\n";
};

get '/count' => sub {
    my $count = (session('count') // 0) + 1;
    session count => $count;
    return "$count\n";
};

get '/cookies' => sub {
    cookie a => 1;
    cookie b => 2;
    return join ' ', map { "$_=" . cookies->{$_}->value } sort keys %{ cookies() };
};

get '/error' => sub { die 'this page always fails' };

package main;

my $dancer = App->to_app;

sub {
    my ($env) = @_;
    return $dancer->($env) if $env->{PATH_INFO} ne '/stream';
    return sub {
        my ($respond) = @_;
        my $writer = $respond->([200, ['Content-Type' => 'text/plain']]);
        $writer->write("line $_\n") for 0 .. 2;
        $writer->close;
    };
};
