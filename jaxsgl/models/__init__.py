"""Model families as flax.nnx modules with logical axis names, and the rules that shard them."""
