# What test_every_library.py asks of a library; the same in every language.

library(poolparty)

health_check <- function() {
  switch(Sys.getenv("TEST_HEALTH"),
    fail = stop("no database"),
    long = stop(strrep("\u00fc", 5000))
  )
}

pieces <- function(request) {
  waiting <- list("one\n", "", as.raw(c(0xff, 0x0a)), "gr\u00fcn\n")
  function() {
    if (length(waiting) == 0) {
      if (request$query == "fail") stop("this one fails")
      return(NULL)
    }
    piece <- waiting[[1]]
    waiting <<- waiting[-1]
    piece
  }
}

routes <- list(
  "/echo" = function(request) {
    headers <- c(
      Method = request$method, Uri = request$uri, Path = request$path, Query = request$query,
      "Remote-Address" = request$remote_address, Headers = length(request$headers)
    )
    list(status = 201, headers = headers, body = request$body)
  },
  "/header" = function(request) {
    value <- header(request, request$query)
    if (is.null(value)) list(status = 404, body = "none") else value
  },
  "/text" = function(request) "gr\u00fcn\n",
  "/octets" = function(request) rep(as.raw(0:255), as.integer(request$query) / 256),
  "/headers" = function(request) {
    list(headers = list("Set-Cookie" = "a=1", "X-Long" = strrep("v", 300), "Set-Cookie" = "b=2"), body = "")
  },
  "/many-headers" = function(request) list(headers = setNames(0:299, paste0("X-", 0:299))),
  "/empty" = function(request) list(status = 204),
  "/fail" = function(request) stop("this one fails"),
  "/bad-status" = function(request) list(status = 99),
  "/bad-header" = function(request) list(headers = list(A = list())),
  "/bad-body" = function(request) list(body = 7),
  "/bad-answer" = function(request) NULL,
  "/say" = function(request) {
    cat("seen ", request$path, "\n", sep = "")
    ""
  },
  "/program" = function(request) system("cat | wc -c; test -e /proc/self/fd/3 && echo 3 is open || true", intern = TRUE),
  "/leave" = function(request) quit(status = 7),
  "/stream" = function(request) list(headers = c("Content-Type" = "text/plain"), body = pieces(request)),
  "/stream-nothing" = function(request) list(body = function() NULL),
  "/stream-fail-first" = function(request) list(body = function() stop("this one fails"))
)

serve(function(request) routes[[request$path]](request), health_check)
