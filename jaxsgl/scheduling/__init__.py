"""Which rows run in the next step: requests as counters, one token budget, no device and no event
loop."""
