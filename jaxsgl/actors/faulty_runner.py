"""A runner that breaks on order, to see what the rest does about it."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Literal

from jaxsgl.config import ConfigError
from jaxsgl.interface import EngineOperation
from jaxsgl.step import (
    Change,
    PendingStep,
    Runner,
    StepLimits,
    StepMasks,
    StepPlan,
    StepResult,
)

KINDS = ("raise", "oom", "hang", "exit", "crash", "kill", "slow")
SLOW_STEP_S = 0.2


@dataclass(frozen=True, slots=True)
class Fault:
    at: Literal["step", "token"]
    """step: once, at the step of that number or the next one there is. token: at every step that
    computes that token."""
    number: int
    kind: str
    """raise: the step fails. oom: it fails for want of memory. hang: it never ends. exit: the
    process ends there and then, with 1. crash: of a fault signal. kill: of SIGKILL, as if from
    outside. slow: this step and all that follow take SLOW_STEP_S more."""


def parse_faults(text: str) -> list[Fault]:
    """Faults as `step:37:raise`, several separated by commas. Raises ConfigError."""
    faults: list[Fault] = []
    for part in text.split(","):
        match part.split(":"):
            case ["step" | "token" as at, number, kind] if number.isdecimal() and kind in KINDS:
                faults.append(Fault(at, int(number), kind))
            case _:
                known = ", ".join(KINDS)
                raise ConfigError(
                    f"fault {part!a} is not understood; write step:N:KIND or token:N:KIND ({known})"
                )
    return faults


class InjectedFault(Exception):
    """A step that was ordered to fail."""


class _FailingStep:
    def __init__(self, step: PendingStep, fault: Fault) -> None:
        self._step = step
        self._fault = fault

    def wait(self) -> StepResult:
        result = self._step.wait()
        what = f"{self._fault.at} {self._fault.number}"
        match self._fault.kind:
            case "raise":
                raise InjectedFault(f"{what} was ordered to fail")
            case "oom":
                raise InjectedFault(f"RESOURCE_EXHAUSTED: {what} was ordered to want memory")
            case "slow":
                time.sleep(SLOW_STEP_S)
                return result
            case _:
                threading.Event().wait()
                raise AssertionError("waited for ever")


class FaultyRunner:
    """Wraps a runner."""

    def __init__(self, runner: Runner, faults: list[Fault]) -> None:
        self._runner = runner
        by_step = (fault for fault in faults if fault.at == "step")
        self._by_step = sorted(by_step, key=lambda fault: fault.number)
        self._by_token = [fault for fault in faults if fault.at == "token"]
        self._slow: Fault | None = None

    @property
    def limits(self) -> StepLimits:
        return self._runner.limits

    @property
    def recompiles(self) -> int:
        return self._runner.recompiles

    def dispatch(self, plan: StepPlan, masks: StepMasks | None = None) -> PendingStep:
        step = self._runner.dispatch(plan, masks)
        fault = self._fault_of(plan) or self._slow
        if fault is None:
            return step
        match fault.kind:
            case "exit":
                os._exit(1)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "slow":
                self._slow = fault
            case _:
                pass
        return _FailingStep(step, fault)

    def prepare(self, operation: EngineOperation) -> Change:
        return self._runner.prepare(operation)

    def _fault_of(self, plan: StepPlan) -> Fault | None:
        if self._by_step and plan.step_id >= self._by_step[0].number:
            return self._by_step.pop(0)
        return next((f for f in self._by_token if f.number in plan.token_ids), None)

    def reset(self) -> None:
        self._runner.reset()
