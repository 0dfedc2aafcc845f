"""Constraints on answers: grammars, patterns and schemas become token masks.

Pure: neither jax nor asyncio. `compiler` is the way in, `matcher` the contract of what comes out.
"""
