# A small application: poolparty --max-pool-size 8 -- tclsh examples/app.tcl
#
# The same as app.py, answer for answer.

package require poolparty

set FORM {<!doctype html>
<meta charset="utf-8">
<title>A form</title>
<form method="post" action="/form">
<label>Your name <input name="name"></label>
<button>Send</button>
</form>
}

set PAGE {<!doctype html>
<meta charset="utf-8">
<title>A page</title>
<h1>Hello, $name!</h1>
<ul>
[join $items ""]</ul>
}

proc page {html} {
    return [dict create headers {Content-Type "text/html; charset=utf-8"} text $html]
}

proc escape {text} {
    return [string map {& &amp; < &lt; > &gt; \" &quot; ' &#x27;} $text]
}

proc unescape {encoded} {
    set bytes ""
    foreach {all plain hex} [regexp -all -inline {([^%]+|%(?![0-9A-Fa-f]{2}))|%([0-9A-Fa-f]{2})} $encoded] {
        append bytes [string map {+ " "} $plain] [binary format H* $hex]
    }
    return [encoding convertfrom utf-8 $bytes]
}

# A field of a form or a query, name=value&…; of a repeated one the first.
proc field {encoded name default} {
    foreach pair [split $encoded &] {
        regexp {^([^=]*)=?(.*)$} $pair -> key value
        if {[unescape $key] eq $name} {
            return [unescape $value]
        }
    }
    return $default
}

proc quoted {text} {
    set json ""
    foreach character [split $text ""] {
        if {$character in {\" \\}} {
            append json \\$character
        } elseif {$character < " "} {
            append json [format {\u%04x} [scan $character %c]]
        } else {
            append json $character
        }
    }
    return "\"$json\""
}

# A JSON object from names and JSON values, in the order of its names.
proc object {fields} {
    set pairs [lmap {name json} [lsort -stride 2 $fields] {string cat [quoted $name] ": " $json}]
    return "{[join $pairs ", "]}"
}

proc / {request} {
    return {text "Hello from Tcl!\n"}
}

proc /json {request} {
    dict with request {
        set headers [object [dict map {name value} $headers {quoted $value}]]
        set json [object [list method [quoted $method] path [quoted $path] query [quoted $query] headers $headers]]
    }
    return [dict create headers {Content-Type application/json} text $json\n]
}

proc /form {request} {
    if {[dict get $request method] ne "POST"} {
        return [page $::FORM]
    }
    set name [escape [field [dict get $request body] name nobody]]
    return [page "<!doctype html>\n<meta charset=\"utf-8\">\n<p>Hello, $name!</p>\n"]
}

proc /page {request} {
    set name [escape [field [dict get $request query] name nobody]]
    set items [lmap number {1 2 3} {string cat "<li>$number times $number is [expr {$number * $number}]</li>\n"}]
    return [page [subst -nobackslashes $::PAGE]]
}

proc /upload {request} {
    return [dict create text "[string length [dict get $request body]] bytes\n"]
}

proc /slow {request} {
    set milliseconds [field [dict get $request query] ms 100]
    after $milliseconds
    return [dict create text "waited $milliseconds ms\n"]
}

proc /error {request} {
    error "this page always fails"
}

set ROUTES {/ /json /form /page /upload /slow /error}

proc handler {request} {
    set path [dict get $request path]
    if {$path ni $::ROUTES} {
        return {status 404 text "not found\n"}
    }
    return [$path $request]
}

poolparty::serve handler
