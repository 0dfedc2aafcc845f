import pytest

from jaxsgl.actors.faulty_runner import Fault, FaultyRunner, InjectedFault, parse_faults
from jaxsgl.cache.manager import KVCacheManager
from jaxsgl.config import ConfigError
from jaxsgl.interface import SamplingParams
from jaxsgl.scheduling.scheduler import Scheduler, Vocabulary
from jaxsgl.scheduling.settings import SchedulingSettings
from tests.fake_runner import FakeRunner


def test_faults_are_written_by_step_and_kind():
    faults = [Fault("step", 3, "raise"), Fault("token", 9, "exit")]
    assert parse_faults("step:3:raise,token:9:exit") == faults


@pytest.mark.parametrize("text", ["", "step:x:raise", "step:1:melt", "3:raise", "step:1:raise,"])
def test_what_is_not_understood_is_refused(text):
    with pytest.raises(ConfigError, match="step:N:KIND"):
        parse_faults(text)


def count_failures(fault: Fault, prompt: list[int]) -> tuple[int, bool]:
    """How often steps of one request fail, and whether it came to its end."""
    inner = FakeRunner()
    runner = FaultyRunner(inner, [fault])
    scheduler = Scheduler(
        inner.limits,
        KVCacheManager(inner.limits.num_pages, inner.limits.page_size),
        Vocabulary([], ()),
        SchedulingSettings(max_len=64),
    )
    scheduler.add("a", prompt, SamplingParams(max_tokens=6, seed=0))
    failed = 0
    for _ in range(20):
        plan = scheduler.plan_step()
        if plan is None:
            break
        try:
            scheduler.apply(runner.dispatch(plan).wait())
        except InjectedFault:
            failed += 1
            runner.reset()
            scheduler.restart()
    return failed, scheduler.idle


@pytest.mark.parametrize("kind", ["raise", "oom"])
def test_a_fault_at_a_step_strikes_once(kind):
    assert count_failures(Fault("step", 1, kind), [1, 2, 3]) == (1, True)


def test_a_fault_at_a_token_strikes_whenever_it_is_computed():
    assert count_failures(Fault("token", 2, "raise"), [1, 2, 3]) == (3, True)
    assert count_failures(Fault("token", 50, "raise"), [1, 2, 3]) == (0, True)
