"""Matrices whose values take 8 or 4 bits: what they are, how they are made, products with them."""
