"""What crosses a pipe or a channel, as bytes. Imports no I/O and no clock; runs in every process."""
