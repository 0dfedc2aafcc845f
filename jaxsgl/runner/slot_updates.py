"""What a plan changes of the slots: page-table entries and draw records, written on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jaxsgl.runner.draw_record import DRAW_FIELDS, draw_record
from jaxsgl.runner.packing import PackedInts
from jaxsgl.runner.slot_state import SlotState
from jaxsgl.step import StepPlan


class UpdateSize(NamedTuple):
    """Entries that one call of an update program takes."""

    num_edits: int
    num_draws: int


UPDATE_SIZES = (UpdateSize(64, 8), UpdateSize(16384, 256))
"""Most steps open a few slots at most, and add a page to some; a burst of cached prompts brings
thousands of pages: those of 256 prompts of 1,024 tokens come in one call."""
NO_SLOT = 2**31 - 1
"""Padding changes a slot that does not exist."""


def update_fields(size: UpdateSize) -> PackedInts:
    """Layout of what an update program is told."""
    return PackedInts(
        {
            "page_edits": (size.num_edits, 3),
            "draw_slots": (size.num_draws,),
            "draws": (size.num_draws, len(DRAW_FIELDS)),
        }
    )


def pack_updates(plan: StepPlan) -> Iterator[tuple[UpdateSize, NDArray[np.int32]]]:
    """The calls that bring a plan's changes to the device; none for most decode steps."""
    edits, openings = plan.page_edits, plan.openings
    while len(edits) or openings:
        size = _smallest(len(edits), len(openings))
        vector = inert_update(size)
        arrays = update_fields(size).views(vector)
        now, edits = edits[: size.num_edits], edits[size.num_edits :]
        opened, openings = openings[: size.num_draws], openings[size.num_draws :]
        arrays["page_edits"][: len(now)] = now
        for index, opening in enumerate(opened):
            arrays["draw_slots"][index] = opening.slot
            arrays["draws"][index] = draw_record(opening)
        yield size, vector


def inert_update(size: UpdateSize) -> NDArray[np.int32]:
    """The vector of a call that changes nothing."""
    vector, arrays = update_fields(size).empty()
    arrays["page_edits"][:, 0] = NO_SLOT
    arrays["draw_slots"][:] = NO_SLOT
    return vector


def _smallest(num_edits: int, num_openings: int) -> UpdateSize:
    """The smallest size that takes all, else the largest."""
    for size in UPDATE_SIZES:
        if num_edits <= size.num_edits and num_openings <= size.num_draws:
            return size
    return UPDATE_SIZES[-1]


UPDATE_WRITES = ("page_table", "draws")


def update_slots(state: SlotState, arrays: dict[str, jax.Array]) -> SlotState:
    """Apply the changes of `update_fields`, inside a compiled program."""
    slot, index, page = (arrays["page_edits"][:, column] for column in range(3))
    # Said to be unique, which a plan's changes are: a GPU then writes without atomic operations.
    return state._replace(
        page_table=state.page_table.at[slot, index].set(page, mode="drop", unique_indices=True),
        draws=state.draws.at[arrays["draw_slots"]].set(
            arrays["draws"], mode="drop", unique_indices=True
        ),
    )
