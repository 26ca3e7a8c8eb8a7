"""What talks to the kernel: thin shells that fetch, translate errors and hand on."""
