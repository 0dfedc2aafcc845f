"""How the scheduler weighs its choices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulingSettings:
    max_len: int
    """Bounds prompt and answer together; the page pool can hold that many tokens."""
    policy: str = "fcfs"
    """One of `policies.POLICY_NAMES`."""
    mixed_chunks: bool = True
    """Prompt chunks and single tokens may share a step; otherwise prompts go first, alone."""
    chunked_prefill: bool = True
    """A prompt may be computed over several steps."""
    share_prefixes: bool = True
    """Requests that begin alike wait for the first of them instead of all computing the same."""
    preemption_threshold: int = 0
    """With the `priority` policy: by how much more urgent than a running request a waiting one
    must be, beyond being more urgent at all, to take its place."""
    max_itl_s: float | None = None
    """With `mixed_chunks`: what a step with decoding rows may take, see `pacing.Pace`."""
    fair: bool = True
    """Tenants take turns by what they were served; otherwise all are one."""
    tenant_quota: float | None = None
    """Share of pages and slots, 0 to 1, beyond which a tenant's running requests give way to those
    of others that wait. Only where they take turns."""
    seed: int = 0
