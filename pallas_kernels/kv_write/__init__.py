"""Writing new keys and values to their pages, in place."""
