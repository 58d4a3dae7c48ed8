"""Runs in gunicorn's master: the arbiter extension, its pool thread and everything that touches a child
process."""
