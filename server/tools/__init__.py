"""Tool calls: what models are told of tools, and reading calls out of what they write. No I/O."""
