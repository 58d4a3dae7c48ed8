"""Runs in each HTTP worker: HTTP/1.1 towards clients, frames towards leased children."""
