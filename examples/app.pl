# A small application: poolparty --max-pool-size 8 -- perl examples/app.pl
#
# The same application as the others of this folder, in Perl.

use strict;
use warnings;

use JSON::PP ();
use Poolparty 'serve';
use Time::HiRes 'sleep';

my $form = <<'HTML';
<!doctype html>
<meta charset="utf-8">
<title>A form</title>
<form method="post" action="/form">
<label>Your name <input name="name"></label>
<button>Send</button>
</form>
HTML

my $page = <<'HTML';
<!doctype html>
<meta charset="utf-8">
<title>A page</title>
<h1>Hello, %s!</h1>
<ul>
%s</ul>
HTML

# Bytes come in and bytes go out: what a browser sends is UTF-8, and so is what it is sent.
my $json = JSON::PP->new->canonical;

my %escapes = ('&' => '&amp;', '<' => '&lt;', '>' => '&gt;', '"' => '&quot;', "'" => '&#39;');

sub escape {
    my ($text) = @_;
    $text =~ s/([&<>"'])/$escapes{$1}/g;
    return $text;
}

# The fields of a form or a query, the first of each name.
sub fields {
    my ($encoded) = @_;
    my %fields;
    for my $pair (split /&/, $encoded) {
        my ($name, $value) = map { tr/+/ /; s/%([0-9a-fA-F]{2})/chr hex $1/ger } split /=/, "$pair=", 3;
        $fields{$name} //= $value;
    }
    return \%fields;
}

sub page {
    my ($body) = @_;
    return [200, ['Content-Type' => 'text/html; charset=utf-8'], $body];
}

my %routes = (
    '/' => sub { "Hello from Perl!\n" },

    '/json' => sub {
        my ($request) = @_;
        my %facts = (
            method  => $request->method,
            path    => $request->path,
            query   => $request->query_string,
            headers => $request->headers,
        );
        return [200, ['Content-Type' => 'application/json'], $json->encode(\%facts) . "\n"];
    },

    '/form' => sub {
        my ($request) = @_;
        return page($form) if $request->method ne 'POST';
        my $name = escape(fields($request->body)->{name} // 'nobody');
        return page(qq(<!doctype html>\n<meta charset="utf-8">\n<p>Hello, $name!</p>\n));
    },

    '/page' => sub {
        my ($request) = @_;
        my $name  = escape(fields($request->query_string)->{name} // 'nobody');
        my $items = join '', map { "<li>$_ times $_ is ${\($_ * $_)}</li>\n" } 1 .. 3;
        return page(sprintf $page, $name, $items);
    },

    '/upload' => sub {
        my ($request) = @_;
        return length($request->body) . " bytes\n";
    },

    '/slow' => sub {
        my ($request) = @_;
        my $milliseconds = fields($request->query_string)->{ms} // 100;
        sleep $milliseconds / 1000;
        return "waited $milliseconds ms\n";
    },

    '/error' => sub { die 'this page always fails' },
);

serve(sub {
    my ($request) = @_;
    my $route = $routes{ $request->path };
    return $route ? $route->($request) : [404, ['Content-Type' => 'text/plain; charset=utf-8'], "not found\n"];
});
