"""Products with matrices whose values take 8 or 4 bits."""
