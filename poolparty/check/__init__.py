"""`poolparty-ctl check -- CMD …`: whether a worker keeps the protocol, for whoever writes a worker library.

`command` reads the command line and prints; `checks` is what is tried, one row a promise; `worker` is the
process under examination; `diagnosis` turns wrong bytes into what their author has to change. No server runs:
the checker alone talks to the worker, in a process of its own, and waits for nothing without a limit.
"""
