# The worker library for Tcl programs, 8.6 or later, in Tcl alone:
#
#     package require poolparty
#     proc handler {request} { return {text "hello\n"} }
#     poolparty::serve handler
#
# Runs in the child: requests arrive as frames on descriptor 0, answers leave on descriptor 3, stdout and stderr are
# free for printing (docs/worker-protocol.md). README.md beside this file says what handlers get and give.

package require Tcl 8.6-
namespace eval poolparty {
    namespace export serve header

    variable version 0.1.0

    variable HTTP_REQUEST 0 HEALTH_CHECK_REQUEST 1 STREAM_CANCEL 3
    variable HTTP_RESPONSE 0 READY 1 HEALTH_REPLY 2
    variable RESPONSE_START 3 RESPONSE_CHUNK 4 RESPONSE_END 5

    variable MAX_FRAME_SIZE 0x7fffffff
    variable MAX_MESSAGE_SIZE 1000 ;# of a health reply: a line of the log
    variable MAX_HEADS 256 ;# that are kept encoded
    variable TEXT_PLAIN "text/plain; charset=utf-8"

    variable answers {}  ;# the channel to descriptor 3
    variable requests {} ;# the channel to what was descriptor 0
    variable cancels 0   ;# whether a stream's child is told when its client has left
    variable streaming 0 ;# whether a response has begun and not ended
    variable behind {}   ;# what was read of the requests while a stream ran
    variable looked 0    ;# where in it the next frame begins that was not looked at
}

# Answer requests until the server closes the pipe; then return. Both arguments are command prefixes.
#
# handler gets a request: a dict of method, uri, path, query, headers, body and remote_address. It returns a dict with
# any of status (200), headers (names and values in turn, a name as often as need be), and one of: text, a string;
# body, bytes; stream, a command prefix that is called with a command prefix which sends the bytes appended to it, and
# throws {POOLPARTY CANCELLED} when the client is found to have left.
# An error in it is written to stderr and answered 500; the process lives on.
#
# healthCheck is called now and then while no request runs: if it raises an error, this process is unwell and will be
# replaced.
proc poolparty::serve {handler {healthCheck {}}} {
    variable answers
    variable requests [TakePipes]
    variable cancels
    chan configure stdout -buffering line
    set offered {}
    if {[info exists ::env(POOLPARTY_FEATURES)]} {
        set offered [split $::env(POOLPARTY_FEATURES) ,]
    }
    set features {}
    if {"ready" in $offered} {
        foreach feature {health-reply stream} {
            if {$feature in $offered} {
                lappend features $feature
            }
        }
        set cancels [expr {"stream" in $features && "stream-cancel" in $offered}]
        if {$cancels} {
            lappend features stream-cancel
        }
    }
    try {
        if {"ready" in $offered} {
            SendReady $features
        }
        Loop $handler $healthCheck $features
    } trap {POOLPARTY GONE} {} {
        catch {close $answers} ;# what is buffered would complain once more
    } trap {POOLPARTY BROKEN} {message} {
        puts stderr "poolparty: $message"
        exit 1
    }
}

# The value of a request's header field, by its name in any case.
proc poolparty::header {request name {default ""}} {
    set headers [dict get $request headers]
    if {[dict exists $headers $name]} {
        return [dict get $headers $name]
    }
    dict for {key value} $headers {
        if {[string equal -nocase $key $name]} {
            return $value
        }
    }
    return $default
}

proc poolparty::Loop {handler healthCheck features} {
    variable HTTP_REQUEST
    variable HEALTH_CHECK_REQUEST
    variable STREAM_CANCEL
    variable requests
    variable behind
    while {1} {
        if {$behind ne ""} {
            set size [Read 4]
        } else {
            set size [read $requests 4]
        }
        if {[binary scan $size iu size] != 1} {
            return
        }
        if {$behind ne ""} {
            set payload [Read $size]
        } else {
            set payload [read $requests $size]
        }
        if {[string length $payload] < $size} {
            return
        }
        if {![binary scan $payload cu tag]} {
            Broken "an empty frame"
        }
        if {$tag == $HTTP_REQUEST} {
            Answer $handler [DecodeRequest $payload] [expr {"stream" in $features}]
        } elseif {$tag == $HEALTH_CHECK_REQUEST && $size == 1} {
            CheckHealth $healthCheck [expr {"health-reply" in $features}]
        } elseif {$tag != $STREAM_CANCEL || $size > 1} { # a cancel is one of a stream that has ended meanwhile
            Broken "a request of a kind this library does not know ($tag)"
        }
    }
}

# So many bytes, the first of which were read while a stream ran.
proc poolparty::Read {size} {
    variable requests
    variable behind
    set bytes [string range $behind 0 [expr {$size - 1}]]
    set behind [string range $behind $size end]
    set missing [expr {$size - [string length $bytes]}]
    if {$missing > 0} {
        append bytes [read $requests $missing]
    }
    return $bytes
}

# Whether a StreamCancel stands behind the request that runs, or nothing will come any more. Waits for nothing.
proc poolparty::Cancelled {} {
    variable STREAM_CANCEL
    variable requests
    variable behind
    variable looked
    append behind [read $requests]
    while {[binary scan $behind @${looked}iucu size tag] == 2} {
        if {$tag == $STREAM_CANCEL} {
            return 1
        }
        incr looked [expr {4 + $size}]
    }
    return [eof $requests]
}

# ---- Decoding. What breaks the framing could mean anything: it ends the process.

proc poolparty::Broken {what} {
    throw {POOLPARTY BROKEN} $what
}

# The uint at `at`, which is moved behind it. More than five bytes are a length beyond any frame.
proc poolparty::ReadUint {payload atVariable} {
    upvar 1 $atVariable at
    set number 0
    for {set shift 0} {$shift < 35} {incr shift 7} {
        if {![binary scan $payload @${at}cu byte]} {
            break
        }
        incr at
        incr number [expr {($byte & 127) << $shift}]
        if {$byte < 128} {
            return $number
        }
    }
    Broken "a request with a length that points beyond its frame"
}

proc poolparty::ReadBytes {payload atVariable} {
    upvar 1 $atVariable at
    # Nearly every length is one byte.
    if {![binary scan $payload @${at}cu size] || $size > 127} {
        set size [ReadUint $payload at]
    } else {
        incr at
    }
    set start $at
    incr at $size
    return [string range $payload $start [expr {$at - 1}]]
}

proc poolparty::DecodeRequest {payload} {
    set at 1
    set remoteAddress [encoding convertfrom utf-8 [ReadBytes $payload at]]
    set uri [encoding convertfrom utf-8 [ReadBytes $payload at]]
    set method [encoding convertfrom utf-8 [ReadBytes $payload at]]
    set headers {}
    for {set count [ReadUint $payload at]} {$count > 0} {incr count -1} {
        set name [encoding convertfrom utf-8 [ReadBytes $payload at]]
        dict set headers $name [encoding convertfrom utf-8 [ReadBytes $payload at]]
    }
    set body [ReadBytes $payload at]
    if {$at != [string length $payload]} {
        Broken "a request whose lengths do not add up to its frame's"
    }
    # http://host/path?query; a regular expression would cost as much as all of the above.
    set mark [string first ? $uri]
    if {$mark < 0} {
        set path $uri
        set query ""
    } else {
        set path [string range $uri 0 [expr {$mark - 1}]]
        set query [string range $uri [expr {$mark + 1}] end]
    }
    set scheme [string first :// $path]
    if {$scheme >= 0} {
        set slash [string first / $path [expr {$scheme + 3}]]
        set path [expr {$slash < 0 ? "/" : [string range $path $slash end]}]
    }
    return [dict create method $method uri $uri path $path query $query headers $headers body $body \
        remote_address $remoteAddress]
}

# ---- Encoding.

proc poolparty::Uint {number} {
    if {$number < 128} {
        return [binary format c $number]
    }
    set bytes {}
    while {$number > 127} {
        lappend bytes [expr {$number & 127 | 128}]
        set number [expr {$number >> 7}]
    }
    lappend bytes $number
    return [binary format c* $bytes]
}

proc poolparty::SizedBytes {bytes} {
    set size [string length $bytes]
    return [Uint $size]$bytes
}

proc poolparty::SizedString {text} {
    return [SizedBytes [encoding convertto utf-8 $text]]
}

# A frame from its pieces, in one write.
proc poolparty::Send {args} {
    variable answers
    variable MAX_FRAME_SIZE
    set payload [string cat {*}$args]
    set size [string length $payload]
    if {$size > $MAX_FRAME_SIZE} {
        error "a response of $size bytes is larger than a frame can be ([expr {$MAX_FRAME_SIZE}])"
    }
    try {
        puts -nonewline $answers [binary format i $size]$payload
        flush $answers
    } trap {POSIX EPIPE} {message} {
        throw {POOLPARTY GONE} $message ;# nobody is left to be answered
    }
}

proc poolparty::SendReady {features} {
    variable READY
    Send [binary format c $READY] [Uint [llength $features]] {*}[lmap feature $features {SizedString $feature}]
}

# What precedes the body in both kinds of response. Most are constants of the program; those that change with each
# request fill the cache, which is then emptied.
proc poolparty::Head {tag status headers} {
    variable heads
    variable MAX_HEADS
    set key [list $tag $status $headers]
    if {![info exists heads($key)]} {
        if {[array size heads] >= $MAX_HEADS} {
            unset heads
        }
        set heads($key) [EncodeHead $tag $status $headers]
    }
    return $heads($key)
}

proc poolparty::EncodeHead {tag status headers} {
    if {![string is integer -strict $status] || $status < 200 || $status > 599} {
        error "a response's status is an integer from 200 to 599, not \"$status\""
    }
    if {![string is list $headers] || [llength $headers] % 2} {
        error "a response's headers are a list of names and values in turn, not \"$headers\""
    }
    set fields {}
    foreach {name value} $headers {
        dict lappend fields $name $value
    }
    set head [binary format c $tag][Uint $status][Uint [dict size $fields]]
    dict for {name values} $fields {
        append head [SizedString $name] [Uint [llength $values]]
        foreach value $values {
            append head [SizedString $value]
        }
    }
    return $head
}

# Bytes are characters from 0 to 255; another one would be lost without a word.
proc poolparty::Bytes {value} {
    if {![string is ascii $value] && [regexp {[^\u0000-\u00ff]} $value character]} {
        error "a response's body is bytes, which \"$character\" is not: use the key text, or encoding convertto"
    }
    return $value
}

# ---- Answering.

proc poolparty::Answer {handler request streams} {
    variable HTTP_RESPONSE
    variable TEXT_PLAIN
    variable streaming
    set code [catch {Respond [uplevel #0 [list {*}$handler $request]] $streams} result options]
    if {$code == 0 || $code == 2} {
        return
    }
    if {$code == 1 && [dict get $options -errorcode] eq "POOLPARTY GONE"} {
        return -options $options $result
    }
    Report "[dict get $request method] \"[dict get $request uri]\" failed" $result $options
    if {$streaming} {
        exit 1 ;# half of an answer must not pass for a whole one
    }
    Send [EncodeHead $HTTP_RESPONSE 500 [list Content-Type $TEXT_PLAIN]] [SizedBytes "internal server error\n"]
}

proc poolparty::Respond {response streams} {
    variable HTTP_RESPONSE
    variable TEXT_PLAIN
    if {![string is list $response] || [llength $response] % 2} {
        error "a handler returns a dict with any of status, headers, text, body and stream, not \"$response\""
    }
    set status 200
    set headers {}
    foreach {key value} $response {
        switch -- $key {
            status { set status $value }
            headers { set headers $value }
            text - body - stream { set $key $value }
            default { error "a response has status, headers, text, body or stream, not \"$key\"" }
        }
    }
    if {[info exists text]} {
        set body [encoding convertto utf-8 $text]
        if {$headers eq ""} {
            set headers [list Content-Type $TEXT_PLAIN]
        } elseif {[string is list $headers] && ![HasContentType $headers]} {
            lappend headers Content-Type $TEXT_PLAIN
        }
    } elseif {[info exists body]} {
        set body [Bytes $body]
    } elseif {![info exists stream]} {
        set body ""
    } elseif {$streams} {
        Stream $status $headers $stream
        return
    } else {
        set body [Collect $stream]
    }
    Send [Head $HTTP_RESPONSE $status $headers] [SizedBytes $body]
}

proc poolparty::HasContentType {headers} {
    foreach {name value} $headers {
        if {[string equal -nocase $name Content-Type]} {
            return 1
        }
    }
    return 0
}

proc poolparty::Collect {command} {
    variable collected {}
    uplevel #0 [list {*}$command [namespace code {CollectChunk}]]
    return $collected
}

proc poolparty::CollectChunk {bytes} {
    variable collected
    append collected [Bytes $bytes]
    return
}

# The head is sent with the first chunk: what fails until then can still be answered 500.
proc poolparty::Stream {status headers command} {
    variable HTTP_RESPONSE
    variable RESPONSE_START
    variable RESPONSE_END
    variable streaming
    variable requests
    variable cancels
    variable looked 0
    set head [EncodeHead $RESPONSE_START $status $headers]
    chan configure $requests -blocking [expr {!$cancels}]
    try {
        uplevel #0 [list {*}$command [namespace code [list SendChunk $head]]]
    } trap {POOLPARTY CANCELLED} {} {
    } finally {
        chan configure $requests -blocking 1
    }
    if {!$streaming} {
        Send [EncodeHead $HTTP_RESPONSE $status $headers] [SizedBytes ""]
        return
    }
    Send [binary format c $RESPONSE_END]
    set streaming 0
}

proc poolparty::SendChunk {head bytes} {
    variable RESPONSE_CHUNK
    variable streaming
    variable cancels
    if {$bytes eq ""} {
        return
    }
    if {$streaming && $cancels && [Cancelled]} {
        throw {POOLPARTY CANCELLED} "the client has left"
    }
    set bytes [Bytes $bytes]
    if {!$streaming} {
        Send $head
        set streaming 1
    }
    Send [binary format c $RESPONSE_CHUNK] [SizedBytes $bytes]
}

proc poolparty::CheckHealth {healthCheck replies} {
    variable HEALTH_REPLY
    variable MAX_MESSAGE_SIZE
    set ok 1
    set message ""
    if {$healthCheck ne "" && [catch {uplevel #0 $healthCheck} message options] == 1} {
        set ok 0
        Report "the health check failed" $message $options
        if {!$replies} {
            exit 1
        }
    }
    if {$replies} {
        set message [encoding convertto utf-8 [expr {$ok ? "" : $message}]]
        if {[string length $message] > $MAX_MESSAGE_SIZE} {
            # The last character may be cut in two.
            set message [regsub {[\u00c0-\u00ff][\u0080-\u00bf]*$} [string range $message 0 $MAX_MESSAGE_SIZE-1] ""]
        }
        Send [binary format cc $HEALTH_REPLY $ok] [SizedBytes $message]
    }
}

# ---- The process.

# The requests' channel; that of the answers is put into its variable. /dev/null takes the place of stdin, so that no
# program the handler starts finds our requests there and eats them. Tcl cannot close descriptor 3 in such a program.
proc poolparty::TakePipes {} {
    variable answers
    if {[catch {
        set answers [open /dev/fd/3 wb]
        # It would wait for a writer, if the server has closed its end already.
        set requests [open /dev/fd/0 {RDONLY NONBLOCK BINARY}]
    } reason]} {
        error "poolparty::serve: unable to open the server's pipes ($reason): this program is started by the server,\
            poolparty -- tclsh app.tcl"
    }
    chan configure $answers -buffering full -buffersize 65536
    chan configure $requests -blocking 1 -buffersize 65536
    close stdin
    open /dev/null r ;# the first channel that is opened now is the new stdin
    return $requests
}

proc poolparty::Report {what result options} {
    catch {
        puts stderr "poolparty: $what"
        puts stderr [expr {[dict exists $options -errorinfo] ? [dict get $options -errorinfo] : $result}]
        puts stderr "    (program \"$::argv0\")" ;# a trace names procedures, and no file
    }
}

package provide poolparty $poolparty::version
