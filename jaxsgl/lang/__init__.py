"""Programs of prompts: a small language in Python whose forks share the radix cache."""
