"""Whether rows that decode draw several tokens in one step, without the host between them. No clock
here."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxsgl.scheduling.request import Request
from jaxsgl.scheduling.shared_prefixes import PrefixSharing
from jaxsgl.step import StepLimits, StepPlan

MAX_CHAIN_S = 0.04
"""A chain may take so long: who comes meanwhile waits for its end, and for that of the next, and a
stream's tokens come together. Rounds that take longer keep the host waiting anyway."""
_WEIGHT = 0.2
"""Of the latest chain in the average."""
_FORGOTTEN_AFTER = 256
"""Decode steps of a size without a chain: those there were may have been slow by chance."""


class Chains:
    """Chains pay where devices wait for the host, which is where rounds are short. How long they
    are only chains tell: a step of one round takes no less than the host needs for it."""

    def __init__(
        self, limits: StepLimits, sharing: PrefixSharing, max_itl_s: float | None = None
    ) -> None:
        """Chains take no longer than `max_itl_s` either."""
        self._limits = limits
        self._sharing = sharing
        self._max_s = min(MAX_CHAIN_S, max_itl_s or MAX_CHAIN_S)
        self._chain_s: dict[int, float] = {}
        """How long chains took, by the size of their number of rows."""
        self._num_single: dict[int, int] = {}
        """Decode steps since the last chain of that size."""

    @property
    def are_there(self) -> bool:
        return self._limits.chain_len > 1

    def observe(self, plan: StepPlan, elapsed_s: float) -> None:
        """A step has taken so long."""
        size = _size(plan.num_rows)
        if plan.mode == "chain":
            known_s = self._chain_s.get(size, elapsed_s)
            self._chain_s[size] = known_s + _WEIGHT * (elapsed_s - known_s)
            self._num_single[size] = 0
        elif plan.mode != "mixed":
            self._num_single[size] = self._num_single.get(size, 0) + 1
            if self._num_single[size] == _FORGOTTEN_AFTER:
                self._chain_s.pop(size, None)

    def num_draws(self, rows: Sequence[Request], num_free_pages: int) -> list[int] | None:
        """How many tokens each row is to draw, or None for steps of one. Each of `rows` wants one
        token, and `draws_alone`."""
        chain_len, page_size = self._limits.chain_len, self._limits.page_size
        num_draws = [min(chain_len, request.num_undrawn) for request in rows]
        # Devices go through all rounds, whoever wants their draws.
        if 2 * max(num_draws, default=0) <= chain_len:
            return None
        if self._chain_s.get(_size(len(rows)), 0.0) > self._max_s:
            return None
        # Nobody is to give way to draws that could as well come one by one.
        if num_free_pages < len(rows) * math.ceil(chain_len / page_size):
            return None
        orders = [request.page_order for request in rows]
        if self._sharing.find(orders, [request.computed + 1 for request in rows]) is not None:
            return None
        return num_draws


def _size(num_rows: int) -> int:
    """Rows of up to twice as many are of the same size."""
    return num_rows.bit_length()
