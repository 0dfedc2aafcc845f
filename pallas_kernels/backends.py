"""How an operation picks one of its implementations."""

from __future__ import annotations

from collections.abc import Mapping


def choose[T](backend: str, implementations: Mapping[str, T]) -> T:
    """The implementation of that name. Raises ValueError listing those present."""
    if backend not in implementations:
        present = ", ".join(sorted(implementations))
        raise ValueError(f"unknown backend {backend!r}; present: {present}")
    return implementations[backend]
