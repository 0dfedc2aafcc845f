"""When requests are due."""

import random
from itertools import islice, pairwise

import pytest
from scipy import stats

from bench.serving.arrivals import Ramp, arrivals


def gaps(rate: float, burstiness: float, count: int = 2000, seed: int = 0) -> list[float]:
    moments = [0.0, *islice(arrivals(random.Random(seed), rate, burstiness), count)]
    return [later - earlier for earlier, later in pairwise(moments)]


def p_value(sample: list[float], rate: float, shape: float) -> float:
    return stats.kstest(sample, stats.gamma(shape, scale=1 / (rate * shape)).cdf).pvalue


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [1, 2, 5, 10, 50, 128, 200])
def test_gaps_of_a_poisson_process_are_exponential(rate, seed):
    sample = gaps(rate, 1.0, seed=seed)
    assert p_value(sample, rate, 1.0) > 0.01
    assert abs(stats.pearsonr(sample[:-1], sample[1:]).statistic) < 0.06
    assert p_value(sample, 1.2 * rate, 1.0) < 0.01
    assert p_value(gaps(rate, 1.5, seed=seed), rate, 1.0) < 0.01


@pytest.mark.parametrize("burstiness", [0.25, 4.0])
def test_burstiness_is_the_shape_of_the_gaps(burstiness):
    sample = gaps(10, burstiness)
    assert p_value(sample, 10, burstiness) > 0.01
    assert p_value(sample, 10, 1.0) < 0.01
    mean = sum(sample) / len(sample)
    variation = stats.variation(sample) ** 2
    assert mean == pytest.approx(0.1, rel=0.15)
    assert variation == pytest.approx(1 / burstiness, rel=0.25)


def test_the_seed_decides_the_moments():
    assert gaps(7, 1.0, 50) == gaps(7, 1.0, 50)
    assert gaps(7, 1.0, 50) != gaps(7, 1.0, 50, seed=1)


def test_an_infinite_rate_makes_everything_due_at_once():
    assert list(islice(arrivals(random.Random(0), float("inf")), 3)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("from_rate", "rate"), [(0, 100), (20, 100), (100, 20), (50, 50)])
def test_a_ramp_has_the_expected_number_of_arrivals_in_every_stretch(from_rate, rate):
    ramp = Ramp(from_rate, over_s=20)
    even = arrivals(random.Random(0), rate, burstiness=1e6, ramp=ramp)
    moments = list(islice(even, 5000))
    assert moments == sorted(moments)
    for begin_s in range(0, 40, 5):
        found = sum(begin_s <= moment < begin_s + 5 for moment in moments)
        middle_rate = from_rate + (rate - from_rate) * min(begin_s + 2.5, 20) / 20
        assert found == pytest.approx(5 * (middle_rate if begin_s < 20 else rate), abs=2)


def test_a_ramp_is_written_as_rate_and_seconds():
    assert Ramp.parse("0.5:30") == Ramp(0.5, 30.0)
    for text in ("5", "5:", "5:0", "-1:3", "a:3", "nan:3", "1:inf"):
        with pytest.raises(ValueError):
            Ramp.parse(text)
