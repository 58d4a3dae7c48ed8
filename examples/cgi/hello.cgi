#!/bin/sh
# A CGI script: poolparty --max-pool-size 4 -- python3 -m poolparty.cgi examples/cgi
# http://127.0.0.1:8080/hello.cgi/somebody

printf 'Content-Type: text/plain; charset=utf-8\n\n'
name=${PATH_INFO#/}
echo "Hello, ${name:-nobody}, from CGI!"
if [ "$REQUEST_METHOD" = POST ]; then
    echo "$(wc -c) bytes"
fi
