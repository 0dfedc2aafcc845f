"""Python's garbage collector beside a replica."""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 10_000
"""New objects between two passes through them. Python's own 700 are those of eight requests, whose
prompts are long lists: hundreds that come at once meant dozens of passes, a fifth of the time until
their first step, in which nothing was found."""

type Thresholds = tuple[int, int, int]


def settle() -> Thresholds:
    """What is there now stays for ever: never look at it again, and more seldom at the rest.
    Returns what `unsettle` takes."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    if thresholds[0]:  # or it is turned off
        gc.set_threshold(max(thresholds[0], YOUNG_OBJECTS), *thresholds[1:])
    return thresholds


def unsettle(thresholds: Thresholds) -> None:
    gc.unfreeze()
    gc.set_threshold(*thresholds)
