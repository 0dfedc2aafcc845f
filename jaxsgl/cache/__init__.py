"""KV pages on the host: who owns them, what they hold, and which go first."""
