"""Loads are counted once and given back once, whatever order things happen in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jaxsgl.interface import EngineStats
from jaxsgl.replicas.routing.latency import FadingMean
from jaxsgl.replicas.routing.load import Guard, Job, ReplicaLoad
from jaxsgl.replicas.routing.prefix_sketch import PrefixSketch


def names(text: str) -> tuple[bytes, ...]:
    return tuple(text[: n + 1].encode() for n in range(len(text)))


EVENTS = st.lists(
    st.tuples(st.sampled_from(["send", "prefilled", "release"]), st.integers(0, 5)), max_size=60
)


@given(EVENTS)
def test_a_load_is_the_sum_of_its_guards(events: list[tuple[str, int]]):
    load = ReplicaLoad(0)
    guards: dict[int, Guard] = {}
    phase: dict[int, str] = {}
    for what, n in events:
        if what == "send" and phase.get(n, "gone") == "gone":
            guards[n] = Guard(load, Job(10 * (n + 1), 4, names("ab" + str(n))))
            phase[n] = "waits"
        elif what == "prefilled" and n in guards:
            guards[n].prefilled(0.0)
            phase[n] = "answers" if phase[n] == "waits" else phase[n]
        elif what == "release" and n in guards:
            guards[n].release()
            phase[n] = "gone"
        waiting = [n for n in phase if phase[n] == "waits"]
        assert load.num_in_flight == sum(state != "gone" for state in phase.values())
        assert load.backlog_tokens == sum(guards[n].uncached_len for n in waiting)
        assert set(load.answering) == {guards[n] for n in phase if phase[n] == "answers"}
        assert load.sketch.num_cached(names("ab")) == (2 if waiting else 0)
    for guard in guards.values():
        guard.release()
    assert (load.num_in_flight, load.backlog_tokens, load.reserved_pages) == (0, 0, 0)
    assert not load.sketch._coming
    assert not load.answering


def test_a_request_beyond_the_rows_waits_for_the_answer_that_ends_next():
    load = ReplicaLoad(0, stats=EngineStats(slots_total=3))
    load.latency.answered(2.0)
    guards = [Guard(load, Job(10)) for _ in range(2)]
    assert load.row_wait_s(now_s=0.0) == 0.0
    guards.append(Guard(load, Job(10)))
    assert load.row_wait_s(now_s=0.0) == 2.0  # no answer has begun
    guards[1].prefilled(1.0)
    guards[0].prefilled(1.5)
    assert load.row_wait_s(now_s=1.5) == 1.5
    assert load.row_wait_s(now_s=9.0) == 0.0
    guards.append(Guard(load, Job(10)))
    assert load.row_wait_s(now_s=1.5) == 2.0  # the first one to end makes room for another
    guards += [Guard(load, Job(10)), Guard(load, Job(10))]
    assert load.row_wait_s(now_s=1.5) == 1.5 + 2.0
    guards.pop(1).release()
    assert load.row_wait_s(now_s=1.5) == 2.0  # of a prompt that is computed only now


def test_a_sketch_knows_what_the_replica_told():
    sketch = PrefixSketch()
    sketch.change(names("abc"), (), False)
    assert sketch.num_cached(names("abcd")) == 3
    assert sketch.num_cached(names("abx")) == 2
    sketch.change((), [b"abc"], False)
    assert sketch.num_cached(names("abcd")) == 2
    sketch.change(names("x"), (), True)
    assert sketch.num_cached(names("abcd")) == 0
    assert sketch.num_cached(names("xy")) == 1
    assert len(sketch) == 1


def test_old_values_fade():
    mean = FadingMean(half_life_s=10)
    assert mean.mean is None
    mean.add(1.0, 0.0)
    mean.add(4.0, 10.0)
    assert mean.mean == (0.5 * 1 + 4) / 1.5
    assert abs(mean.value(1000.0, otherwise=7.0) - 7.0) < 1e-6
