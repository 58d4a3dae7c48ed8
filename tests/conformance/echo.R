# The echo application of docs/writing-a-worker.md, for `poolparty-ctl check --echo`.

library(poolparty)

serve(function(request) {
  if (request$path == "/fail") stop("this page always fails")
  if (request$path == "/print") cat("printed\n")
  if (request$path == "/stream") {
    waiting <- c("one\n", "two\n", "three\n")
    return(list(body = function() {
      if (length(waiting) == 0) return(NULL)
      piece <- waiting[1]
      waiting <<- waiting[-1]
      piece
    }))
  }
  check <- header(request, "x-check")
  headers <- list(
    "Echo-Method" = request$method,
    "Echo-Uri" = request$uri,
    "Echo-Remote-Address" = request$remote_address,
    "Echo-Check" = if (is.null(check)) "" else check
  )
  for (name in names(request$headers)) {
    headers <- c(headers, list("Echo-Headers" = paste0(name, ": ", request$headers[[name]])))
  }
  list(headers = headers, body = request$body)
})
