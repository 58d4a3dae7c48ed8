# Writes poolparty/Meta/package.rds, which makes the folder an installed package for R: Rscript make-package.R
#
# To be run here after a change of poolparty/DESCRIPTION. Text and version 2 of the format, so that it can be compared
# and that every R since 4.0 reads it.

description <- read.dcf("poolparty/DESCRIPTION")[1, ]
built <- list(
  R = structure(list(c(4L, 0L, 0L)), class = c("R_system_version", "package_version", "numeric_version")),
  Platform = "", Date = sub(".*; ; (.*); .*", "\\1", description[["Built"]]), OStype = "unix"
)
information <- list(
  DESCRIPTION = description, Built = built, Rdepends = list(), Rdepends2 = list(), Depends = list(),
  Suggests = list(), Imports = list(), LinkingTo = list()
)
saveRDS(structure(information, class = "packageDescription2"), "poolparty/Meta/package.rds",
  ascii = TRUE, version = 2, compress = FALSE
)
