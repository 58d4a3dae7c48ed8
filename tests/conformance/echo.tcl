# The echo application of docs/writing-a-worker.md, for `poolparty-ctl check --echo`.

package require poolparty

proc pieces {emit} {
    foreach piece {one two three} {
        {*}$emit $piece\n
    }
}

proc more {emit} {
    while 1 {
        {*}$emit more\n
    }
}

proc handler {request} {
    switch [dict get $request path] {
        /fail { error "this page always fails" }
        /print { puts printed }
        /stream { return {stream pieces} }
        /endless { return {stream more} }
    }
    set headers [list Echo-Method [dict get $request method] Echo-Uri [dict get $request uri] \
        Echo-Remote-Address [dict get $request remote_address] \
        Echo-Check [poolparty::header $request x-check ""]]
    dict for {name value} [dict get $request headers] {
        lappend headers Echo-Headers "$name: $value"
    }
    dict create headers $headers body [dict get $request body]
}

poolparty::serve handler
