"""JSON Schema: reading, rewriting, and translation to grammars."""
