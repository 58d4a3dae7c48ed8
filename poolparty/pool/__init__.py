"""What the pool decides: a child's life and the pool's size. No I/O and no clock; runs in the pool thread."""
