# Routes as the package plumber has them:
#
#     poolparty -- Rscript -e 'poolparty::serve(poolparty::plumb("examples/plumber/plumber.R"))'

#* Greets.
#* @get /
#* @serializer text
function() {
  "Hello from R!\n"
}

#* The sum of two numbers.
#* @param a:dbl one
#* @param b:dbl the other
#* @get /sum
#* @post /sum
function(a, b = 0) {
  list(sum = as.numeric(a) + as.numeric(b))
}

#* @get /cars/<cylinders:int>
#* @serializer csv
function(cylinders) {
  subset(mtcars, cyl == cylinders, c("mpg", "hp"))
}

#* @post /users
function(req, res, name) {
  res$status <- 201
  res$setHeader("Location", paste0("/users/", name))
  res$setCookie("last", name, path = "/")
  list(name = name, agent = req$HTTP_USER_AGENT)
}

#* @get /error
function() {
  stop("this page always fails")
}
