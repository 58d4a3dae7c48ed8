# A small application: poolparty --max-pool-size 8 -- Rscript examples/app.R
#
# The same as app.py, answer for answer.

form_page <- '<!doctype html>
<meta charset="utf-8">
<title>A form</title>
<form method="post" action="/form">
<label>Your name <input name="name"></label>
<button>Send</button>
</form>
'

page_template <- '<!doctype html>
<meta charset="utf-8">
<title>A page</title>
<h1>Hello, %s!</h1>
<ul>
%s</ul>
'

page <- function(body) list(headers = c("Content-Type" = "text/html; charset=utf-8"), body = body)

escape <- function(text) {
  for (each in list(c("&", "&amp;"), c("<", "&lt;"), c(">", "&gt;"), c('"', "&quot;"), c("'", "&#x27;"))) {
    text <- gsub(each[1], each[2], text, fixed = TRUE)
  }
  text
}

unescape <- function(encoded) {
  text <- utils::URLdecode(gsub("+", " ", encoded, fixed = TRUE))
  Encoding(text) <- "UTF-8"
  text
}

# A field of a form or a query, name=value&...; of a repeated one the first.
field <- function(encoded, name, default) {
  for (pair in strsplit(encoded, "&", fixed = TRUE)[[1]]) {
    if (unescape(sub("=.*", "", pair)) == name) {
      return(unescape(sub("^[^=]*=?", "", pair)))
    }
  }
  default
}

# Texts and named lists of them as JSON, in the order of their names.
json <- function(value) {
  if (is.list(value)) {
    value <- value[order(names(value), method = "radix")]
    pairs <- vapply(names(value), function(name) paste0(json(name), ": ", json(value[[name]])), "")
    return(paste0("{", paste(pairs, collapse = ", "), "}"))
  }
  value <- gsub('(["\\\\])', "\\\\\\1", value)
  for (code in 1:31) value <- gsub(intToUtf8(code), sprintf("\\u%04x", code), value, fixed = TRUE)
  paste0('"', value, '"')
}

routes <- list(
  "/" = function(request) "Hello from R!\n",
  "/json" = function(request) {
    facts <- c(request[c("method", "path", "query")], list(headers = as.list(request$headers)))
    list(headers = c("Content-Type" = "application/json"), body = paste0(json(facts), "\n"))
  },
  "/form" = function(request) {
    if (request$method != "POST") {
      return(page(form_page))
    }
    name <- escape(field(rawToChar(request$body), "name", "nobody"))
    page(paste0('<!doctype html>\n<meta charset="utf-8">\n<p>Hello, ', name, "!</p>\n"))
  },
  "/page" = function(request) {
    items <- sprintf("<li>%d times %d is %d</li>\n", 1:3, 1:3, (1:3)^2)
    name <- escape(field(request$query, "name", "nobody"))
    page(sprintf(page_template, name, paste(items, collapse = "")))
  },
  "/upload" = function(request) paste(length(request$body), "bytes\n"),
  "/slow" = function(request) {
    milliseconds <- as.integer(field(request$query, "ms", "100"))
    Sys.sleep(milliseconds / 1000)
    paste("waited", milliseconds, "ms\n")
  },
  "/error" = function(request) stop("this page always fails")
)

poolparty::serve(function(request) {
  route <- routes[[request$path]]
  if (is.null(route)) {
    return(list(status = 404, headers = c("Content-Type" = "text/plain; charset=utf-8"), body = "not found\n"))
  }
  route(request)
})
