"""What the pool decides: a child's life and the pool's size. Imports no I/O and no clock; runs in the pool thread."""
