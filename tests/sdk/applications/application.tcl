# What test_every_library.py asks of a library; the same in every language.

package require poolparty

proc health_check {} {
    if {[info exists ::env(TEST_HEALTH)]} {
        switch $::env(TEST_HEALTH) {
            fail { error "no database" }
            long { error [string repeat \u00fc 5000] }
        }
    }
}

proc pieces {request emit} {
    foreach piece [list one\n "" \u00ff\n [encoding convertto utf-8 gr\u00fcn\n]] {
        {*}$emit $piece
    }
    if {[dict get $request query] eq "fail"} {
        error "this one fails"
    }
}

proc more {emit} {
    try {
        while 1 {
            {*}$emit more\n
        }
    } finally {
        puts closed
    }
}

proc all_bytes {} {
    for {set number 0} {$number < 256} {incr number} {
        lappend numbers $number
    }
    return [binary format c* $numbers]
}

proc many_headers {} {
    for {set number 0} {$number < 300} {incr number} {
        lappend headers X-$number $number
    }
    return $headers
}

set routes {
    /echo {
        set headers [dict create Method $method Uri $uri Path $path Query $query Remote-Address $remote_address \
            Headers [dict size $headers]]
        dict create status 201 headers $headers body $body
    }
    /header {
        set value [poolparty::header $request $query none]
        dict create status [expr {$value eq "none" ? 404 : 200}] body [encoding convertto utf-8 $value]
    }
    /text { dict create text "gr\u00fcn\n" }
    /octets {
        dict create headers {Content-Type application/octet-stream} body [string repeat [all_bytes] [expr {$query / 256}]]
    }
    /headers { dict create headers [list Set-Cookie a=1 X-Long [string repeat v 300] Set-Cookie b=2] body "" }
    /many-headers { dict create headers [many_headers] }
    /empty { dict create status 204 }
    /fail { error "this one fails" }
    /bad-status { dict create status 99 }
    /bad-header { dict create headers A }
    /bad-body { dict create body \u20ac }
    /bad-answer { return 7 }
    /say {
        puts "seen $path"
        return {}
    }
    /program { dict create text [exec sh -c "cat | wc -c; test -e /proc/self/fd/3 && echo 3 is open"]\n }
    /leave { exit 7 }
    /stream { dict create headers {Content-Type text/plain} stream [list pieces $request] }
    /endless { dict create stream more }
    /stream-nothing { dict create stream {apply {emit {}}} }
    /stream-fail-first { dict create stream {apply {emit {error "this one fails"}}} }
}

proc handler {request} {
    return [dict with request [dict get $::routes [dict get $request path]]]
}

poolparty::serve handler health_check
