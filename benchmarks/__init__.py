"""Measures Poolparty beside other application servers on the same machine: `bin/bench`.

Not part of the installed product. One module a noun: cases say what is measured, servers how each contestant
is started and ended, applications what it serves; wrk and generator put the load on, figures and chart turn
samples into a page. Every server listens on 127.0.0.1 and is ended by its process id.
"""
