"""A replica without a model: it repeats the prompt.

The n-th token of an answer is the prompt's n-th, again and again, until `max_tokens`; the text of a
token is its byte. Every step gives each request one token. A prompt can be an order to fail in some
way (`_obey`), and so can the model path.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Callable

from jaxsgl.actors.mailbox import MailboxClosed
from jaxsgl.actors.messages import (
    Abort,
    Admit,
    Drain,
    Drained,
    FlushCache,
    LetGo,
    Probe,
    Progress,
    Ready,
    Released,
    Reply,
    Speed,
    StepOutputs,
    Stop,
    ToFront,
    ToReplica,
    TrackPrefixes,
)
from jaxsgl.config import ConfigError, EngineConfig
from jaxsgl.interface import EngineStats, Finish, ModelInfo, TokenLogprob
from jaxsgl.scheduling.outputs import RowOutput

CONTEXT_LEN = 64
NUM_SLOTS = 4


class FakeReplica:
    def __init__(self, send: Callable[[ToFront], None]) -> None:
        self.running: dict[str, Admit] = {}
        self.num_done: dict[str, int] = {}
        self.admitted: list[Admit] = []
        self.finished: list[str] = []
        """How each request ended, in that order."""
        self.holding: set[str] = set()
        """Requests whose prompts are held."""
        self.num_flushed = 0
        self.num_probes = 0
        self.is_held = False
        """Gets nowhere any more."""
        self.tracks_prefixes = False
        self._send = send
        self._aborts: dict[str, str] = {}
        self._stopped: set[str] = set()
        self._ending = False
        self._drain_deadline_s: float | None = None
        self._step_id = 0

    @classmethod
    async def start(cls, config: EngineConfig, send: Callable[[ToFront], None]) -> FakeReplica:
        order, _, detail = (config.model_path or "").partition(":")
        send(Progress("loading", 0, 1))
        match order:
            case "refuse":
                raise ConfigError(detail)
            case "break":
                raise RuntimeError(f"{detail}\nand more that is of no use to anybody")
            case "load-for-ever":
                await asyncio.Event().wait()
            case "block-for-ever":
                await asyncio.to_thread(time.sleep, 3600)
            case "die-while-loading":
                os.kill(os.getpid(), signal.SIGKILL)
        send(Progress("loading", 1, 1))
        model = ModelInfo(
            name="echo",
            architecture="echo",
            vocab_size=256,
            context_len=CONTEXT_LEN,
            eos_token_ids=(0,),
            has_chat_template=True,
            num_devices=1,
            mesh=config.mesh or "tp=1",
            platform="cpu",
            attention_backend="xla",
        )
        send(Ready(model, CONTEXT_LEN - 1, (f"process {os.getpid()}",)))
        return cls(send)

    def deliver(self, message: ToReplica) -> None:
        if self._ending:
            raise MailboxClosed
        match message:
            case Admit():
                self._obey(bytes(message.prompt_ids))
                assert message.request_id not in self.running, "an id was used twice"
                self.admitted.append(message)
                self.running[message.request_id] = message
                told = message.told
                self.num_done[message.request_id] = 0 if told is None else len(told.token_ids)
            case LetGo(request_id):
                self.holding.discard(request_id)
            case Abort():
                self.holding.discard(message.request_id)
                if message.request_id in self.running:
                    self._aborts[message.request_id] = message.reason
            case FlushCache():
                self.num_flushed += 1
                error = "cannot" if self.num_flushed == 3 else None
                self._send(Reply(message.ask_id, error))
            case Probe():
                self.num_probes += 1
                self._send(Reply(message.ask_id))
            case TrackPrefixes():
                self.tracks_prefixes = True
            case Drain():
                self._drain_deadline_s = time.monotonic() + message.timeout_s
            case Stop():
                self._ending = True

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self.running), slots_total=NUM_SLOTS)

    def speed(self) -> Speed:
        return Speed()

    async def run(self) -> None:
        while not self._ending:
            await asyncio.sleep(0.0005)
            self._step()
            if self._drain_deadline_s is not None:
                if time.monotonic() >= self._drain_deadline_s:
                    self._stopped.update(self.running)
                    self._step()
                self._ending = not self.running
        self._send(Drained())

    def _obey(self, order: bytes) -> None:
        match order:
            case b"die":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"raise":
                asyncio.get_running_loop().call_soon(self._fail)
            case b"spin":
                os.write(1, b"spinning\n")
                time.sleep(3600)
            case b"hold":  # no other thread of this process can run any more
                os.write(1, b"holding\n")
                ctypes.PyDLL(None).sleep(3600)

    def _fail(self) -> None:
        self._step = self._raise

    def _raise(self) -> None:
        raise RuntimeError("the device is lost")

    def _step(self) -> None:
        if self.is_held:
            return
        rows = [self._row(admit) for admit in self.running.values() if not self._stalls(admit)]
        released = [row.request_id for row in rows if row.finish is not None]
        self.finished += [row.finish.kind for row in rows if row.finish is not None]
        for request_id in released:
            del self.running[request_id], self.num_done[request_id]
            self._aborts.pop(request_id, None)
        if rows:
            self._send(StepOutputs(self._step_id, rows))
            self._step_id += 1
        if released:
            self._send(Released(released))

    def _stalls(self, admit: Admit) -> bool:
        """The answer to `stall` ends only at a second replica: at the first it gets one token."""
        is_ended = admit.request_id in self._stopped or admit.request_id in self._aborts
        return (
            bytes(admit.prompt_ids) == b"stall"
            and admit.told is None
            and self.num_done[admit.request_id] > 0
            and not is_ended
        )

    def _row(self, admit: Admit) -> RowOutput:
        prompt, num_done = admit.prompt_ids, self.num_done[admit.request_id]
        finish = None
        if admit.request_id in self._stopped:
            finish = Finish("shutdown", message="the server is stopping")
        elif admit.request_id in self._aborts:
            finish = Finish("abort", message=self._aborts[admit.request_id])
        if finish is not None:
            return RowOutput(admit.request_id, [], b"", len(prompt), num_done, 0, finish)
        if admit.sampling.max_tokens == 0:
            if admit.hold_s is not None:
                self.holding.add(admit.request_id)
            return RowOutput(admit.request_id, [], b"", len(prompt), 0, 0, Finish("length"))
        token_id = prompt[num_done % len(prompt)]
        self.num_done[admit.request_id] = num_done = num_done + 1
        wants_logprobs = admit.sampling.logprobs is not None
        return RowOutput(
            admit.request_id,
            [token_id],
            bytes([token_id]),
            len(prompt),
            num_done,
            0,
            Finish("length") if num_done == admit.sampling.max_tokens else None,
            [TokenLogprob(token_id, -0.5)] if wants_logprobs else None,
        )
