"""A replica without a model that steps by the clock, with one token for each request.

`python -m bench.clocked_replica STEP_MS SLOTS SOCKET` is what a front starts for a real one.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from itertools import islice

from jaxsgl.actors.mailbox import MailboxClosed
from jaxsgl.actors.messages import (
    Abort,
    Admit,
    Drain,
    Ready,
    Released,
    Speed,
    StepOutputs,
    Stop,
    ToFront,
    ToReplica,
)
from jaxsgl.config import EngineConfig
from jaxsgl.interface import EngineStats, Finish, ModelInfo
from jaxsgl.replicas.child import run_replica
from jaxsgl.scheduling.outputs import RowOutput

CONTEXT_LEN = 1 << 20
VOCAB_SIZE = 256


class ClockedReplica:
    """Says " a" to everything, once per step and request, until `max_tokens`. The oldest requests
    run, as many as there are slots; the others wait."""

    def __init__(self, step_s: float, slots: int, send: Callable[[ToFront], None]) -> None:
        self._step_s = step_s
        self._slots = slots
        self._send = send
        self._requests: dict[str, Admit] = {}
        self._num_done: dict[str, int] = {}
        self._num_steps = 0
        self._ending = asyncio.Event()

    @classmethod
    async def start(
        cls, step_s: float, slots: int, config: EngineConfig, send: Callable[[ToFront], None]
    ) -> ClockedReplica:
        model = ModelInfo(
            name="clock",
            architecture="clock",
            vocab_size=VOCAB_SIZE,
            context_len=CONTEXT_LEN,
            eos_token_ids=(0,),
            has_chat_template=False,
            num_devices=1,
            mesh=config.mesh or "tp=1",
            platform="cpu",
            attention_backend="xla",
        )
        send(Ready(model, CONTEXT_LEN - 1))
        return cls(step_s, slots, send)

    def deliver(self, message: ToReplica) -> None:
        if self._ending.is_set():
            raise MailboxClosed
        match message:
            case Admit():
                self._requests[message.request_id] = message
                self._num_done[message.request_id] = 0
            case Abort(request_id, _) if self._requests.pop(request_id, None):
                self._send(Released([request_id]))
            case Drain() | Stop():
                self._ending.set()
            case _:
                pass

    def stats(self) -> EngineStats:
        num_running = min(len(self._requests), self._slots)
        return EngineStats(
            num_running=num_running,
            num_waiting=len(self._requests) - num_running,
            slots_total=self._slots,
            slots_free=self._slots - num_running,
        )

    def speed(self) -> Speed:
        return Speed(decode_step_s=self._step_s)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while not self._ending.is_set():
            due_s = max(due_s + self._step_s, loop.time())  # late once is not late for ever
            await asyncio.sleep(due_s - loop.time())
            self._step()

    def _step(self) -> None:
        if not self._requests:
            return
        rows = [self._row(admit) for admit in islice(self._requests.values(), self._slots)]
        self._send(StepOutputs(self._num_steps, rows))
        self._num_steps += 1
        ended = [row.request_id for row in rows if row.finish is not None]
        if ended:
            for request_id in ended:
                del self._requests[request_id], self._num_done[request_id]
            self._send(Released(ended))

    def _row(self, admit: Admit) -> RowOutput:
        num_done = self._num_done[admit.request_id] = self._num_done[admit.request_id] + 1
        finish = Finish("length") if num_done == admit.sampling.max_tokens else None
        return RowOutput(admit.request_id, [1], b" a", len(admit.prompt_ids), num_done, 0, finish)


if __name__ == "__main__":
    step_ms, slots, socket_path = sys.argv[1:]
    start = partial(ClockedReplica.start, float(step_ms) / 1000, int(slots))
    sys.exit(run_replica(socket_path, start))
