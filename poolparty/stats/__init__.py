"""What is counted, where it stands in shared memory, and how it is shown."""
