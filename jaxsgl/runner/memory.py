"""How a device's memory is shared out: weights, slot state, KV pages, and what steps compute."""

from __future__ import annotations

from dataclasses import dataclass

from jaxsgl.config import ConfigError
from jaxsgl.models.model_config import ModelConfig
from jaxsgl.step import StepLimits

GIB = 2**30
MARGIN_BYTES = GIB // 4
"""Kept free beside what is accounted for: small arrays and the allocator's rounding."""
HOLES_SHARE = 1 / 32
"""Of a device's memory: what is left between weights, too small for another, and what the allocator
adds to an array whose place is up to 128 MiB larger. By the tests' model of the allocator that is
less than 1 GiB for a model of 15 that is loaded largest weights first, nearly 5 layer by layer."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes per device."""

    limit: int
    """What jax may use."""
    in_use: int
    """Taken before this model came."""
    weights: int
    slots: int
    """Slot state: token counts, page tables, biases."""
    loading: int
    """Temporaries of loading, beyond the memory of weights that are still to come."""
    steps: int
    """Temporaries and logits of the largest step: estimated first, measured once compiled."""
    page: int
    """One page of all layers."""
    num_pages: int

    @property
    def kv(self) -> int:
        return self.page * self.num_pages

    @property
    def free(self) -> int:
        """Negative where it does not fit."""
        taken = self.in_use + self.weights + self.slots + self.steps + self.kv
        return self.limit - taken - self.margin

    @property
    def margin(self) -> int:
        """Kept free. While weights are loaded, temporaries have it to themselves: pages are held
        from the beginning."""
        return MARGIN_BYTES + max(self._holes, self.loading)

    @property
    def _holes(self) -> int:
        return int(self.limit * HOLES_SHARE)

    @property
    def allowance(self) -> int:
        """What steps may take of the margin: pages are counted with an estimate of them, and a step
        that takes a little more is no reason to refuse them."""
        return self.margin // 4

    def table(self) -> str:
        """The arithmetic, one line per item."""
        items = {
            "limit of jax's pool": self.limit,
            "in use before": self.in_use,
            "weights": self.weights,
            "slot state": self.slots,
            "largest step": self.steps,
            f"KV, {self.num_pages} pages": self.kv,
            "margin, for loading" if self.loading > self._holes else "margin": self.margin,
            "left over": self.free,
        }
        return "\n".join(f"  {name:<24}{num / GIB:9.2f} GiB" for name, num in items.items())

    def require_room(self, from_margin: int = 0) -> None:
        """Raise ConfigError, with the table, for a plan that does not fit, or only with more than
        so much of the margin."""
        if self.free < -from_margin or self.num_pages < 2:
            raise ConfigError(
                f"the model does not fit into a device's memory; try a lower "
                f"--mem-fraction-static, --chunked-prefill-size or --max-num-reqs\n{self.table()}"
            )


def step_bytes(config: ModelConfig, limits: StepLimits, itemsize: int) -> int:
    """Estimate of what the largest step needs besides weights and pages, on one device.

    Per token: the hidden state several times, queries and attention's output in float32, both
    halves of the feed-forward block, or of those of a token's experts, with a copy of the hidden
    state for each. Per wanted logit: the logits, and twice as much to draw.
    """
    mlp, copies = config.mlp_size, 4
    if config.experts is not None:
        mlp = max(mlp, config.experts.num_chosen * config.experts.mlp_size)
        copies += 4 * config.experts.num_chosen
    heads = (config.num_q_heads + 2 * config.num_kv_heads) * config.head_dim
    per_token = (copies * config.hidden_size + 3 * mlp + 2 * heads) * itemsize + 4 * heads
    return limits.max_tokens * per_token + 3 * limits.max_logits * config.vocab_size * 4
