"""Attention of one query token per row over paged keys and values."""
