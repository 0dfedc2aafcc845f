"""A request on its way through the replicas."""

from __future__ import annotations

import hashlib

import msgspec

from jaxsgl.actors.messages import Admit
from jaxsgl.interface import EngineError
from jaxsgl.replicas.answer import Answer

MAX_DEATHS = 2
"""A request that was there when so many replicas died by themselves is a suspect."""


class Quarantined(EngineError):
    """The request brought a replica down while it was alone there."""

    def __init__(self) -> None:
        super().__init__(
            "the request was stopped because the engine died of it", code="request_quarantined"
        )


class Journey:
    """What is known of a request whatever replica it is at, if any."""

    def __init__(self, admit: Admit, deadline_s: float | None) -> None:
        """`deadline_s` is on the clock of whoever calls `next_admit`."""
        self.answer = Answer()
        self.is_alone = False
        """Nothing else is where it is, because it is a suspect."""
        self.is_quarantined = False
        self.was_aborted = False
        self.was_placed = False
        """Whether it has been at a replica."""
        self.prefix_names: tuple[bytes, ...] | None = None
        """Of the prompt's prefixes of whole pages (`cache.page_hash`), once somebody asked."""
        self._admit = admit
        self._deadline_s = deadline_s
        self._num_deaths = 0

    @property
    def request_id(self) -> str:
        return self._admit.request_id

    @property
    def admit(self) -> Admit:
        """As it was first sent."""
        return self._admit

    @property
    def deadline_s(self) -> float | None:
        return self._deadline_s

    @property
    def is_suspect(self) -> bool:
        return self._num_deaths >= MAX_DEATHS

    @property
    def known_len(self) -> int:
        """Tokens to have KV before the next one is drawn."""
        told = self.answer.told
        return len(self._admit.prompt_ids) + (0 if told is None else len(told.token_ids))

    def next_admit(self, now_s: float) -> Admit:
        """The request as the next replica takes it."""
        timeout_s = None if self._deadline_s is None else max(0.0, self._deadline_s - now_s)
        return msgspec.structs.replace(self._admit, timeout_s=timeout_s, told=self.answer.told)

    def was_at_death(self) -> None:
        """A replica where it was has died by itself."""
        if self.is_alone:
            self.is_quarantined = True
        self._num_deaths += 1


def fingerprint(admit: Admit) -> bytes:
    """What a request and its repetition have in common: all but id, time, urgency and seed."""
    sampling = msgspec.structs.replace(admit.sampling, seed=None)
    same = msgspec.structs.replace(
        admit, request_id="", timeout_s=None, priority=0, sampling=sampling, told=None
    )
    return hashlib.blake2b(msgspec.msgpack.encode(same), digest_size=16).digest()


class Quarantine:
    """Requests that are refused for a while, whoever sends them again."""

    PERIOD_S = 600.0

    def __init__(self) -> None:
        self._until_s: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._until_s)

    def put(self, admit: Admit, now_s: float) -> None:
        self._until_s[fingerprint(admit)] = now_s + self.PERIOD_S

    def check(self, admit: Admit, now_s: float) -> None:
        """Raises Quarantined."""
        if not self._until_s:
            return
        self._until_s = {key: until for key, until in self._until_s.items() if until > now_s}
        if fingerprint(admit) in self._until_s:
            raise Quarantined
