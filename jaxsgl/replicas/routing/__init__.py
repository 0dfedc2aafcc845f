"""Which replica gets a request. Pure: no I/O, no event loop, no clock of its own."""
