"""`poolparty-ctl top`: a server's figures and processes in a terminal, brought up to date each second.

Runs in a process of its own. `figures` makes rows and rates from two answers of `stats --json` and does no
I/O, `feed` asks a server for them, `screen` draws them by rich, `command` holds the terminal and the keys.
"""
