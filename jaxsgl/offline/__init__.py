"""The engine as a Python object: prompts in, answers out, no server."""
