"""Causal attention of ragged rows of query tokens over paged keys and values."""
