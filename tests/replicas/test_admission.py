import pytest

from jaxsgl.actors.messages import Ready
from jaxsgl.interface import (
    GenerateRequest,
    InvalidRequest,
    ModelInfo,
    SamplingParams,
    TextPrompt,
)
from jaxsgl.replicas.admission import SeedStream, admission

READY = Ready(
    ModelInfo(
        name="echo",
        architecture="echo",
        vocab_size=256,
        context_len=64,
        eos_token_ids=(0,),
        has_chat_template=True,
        num_devices=1,
        mesh="tp=1",
        platform="cpu",
        attention_backend="xla",
    ),
    max_prompt_len=63,
)
FEW_PAGES = Ready(READY.model, max_prompt_len=31)


def admit(prompt_len: int, ready: Ready = READY, **sampling):
    request = GenerateRequest(
        request_id="r",
        prompt=TextPrompt("?"),
        sampling=SamplingParams(**sampling),
        cache_namespace="ns",
        priority=3,
        timeout_s=1.5,
        hold_s=7.0,
    )
    return admission(request, [1] * prompt_len, "prompt", 77, ready)


def test_everything_the_request_says_goes_along():
    admitted = admit(4, temperature=0.5, max_tokens=5)
    assert admitted.prompt_ids == [1] * 4
    assert (admitted.request_id, admitted.cache_namespace) == ("r", "ns")
    assert (admitted.priority, admitted.timeout_s) == (3, 1.5)
    assert admitted.sampling == SamplingParams(temperature=0.5, max_tokens=5, seed=77)


def test_a_seed_of_its_own_is_kept():
    assert admit(4, seed=0).sampling.seed == 0


def test_without_max_tokens_the_answer_may_fill_what_is_left():
    assert admit(4).sampling.max_tokens == 60
    assert admit(63).sampling.max_tokens == 1
    assert admit(4, FEW_PAGES).sampling.max_tokens == 28


@pytest.mark.parametrize(
    ("prompt_len", "ready", "sampling"),
    [
        (64, READY, {}),
        (1000, READY, {}),
        (64, READY, {"max_tokens": 0}),
        (4, READY, {"max_tokens": 61}),
        (32, FEW_PAGES, {}),
        (16, FEW_PAGES, {"max_tokens": 17}),
    ],
)
def test_what_cannot_fit_is_refused(prompt_len, ready, sampling):
    with pytest.raises(InvalidRequest) as caught:
        admit(prompt_len, ready, **sampling)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("min_tokens", [61, 2**31, 2**62])
def test_more_tokens_than_fit_are_not_the_least(min_tokens):
    assert admit(4, min_tokens=60).sampling.min_tokens == 60
    with pytest.raises(InvalidRequest) as caught:
        admit(4, min_tokens=min_tokens)
    assert caught.value.param == "min_tokens"


def test_what_just_fits_is_not():
    assert admit(4, max_tokens=60).sampling.max_tokens == 60
    assert admit(63, max_tokens=0).sampling.max_tokens == 0
    assert admit(16, FEW_PAGES, max_tokens=16).sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("logit_bias", {256: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("stop_token_ids", (5, 256)),
        ("stop_token_ids", (-1,)),
    ],
)
def test_ids_that_are_no_tokens_are_refused(param, value):
    with pytest.raises(InvalidRequest) as caught:
        admit(4, **{param: value})
    assert caught.value.param == param


def test_seeds_depend_on_the_random_seed_and_their_number_alone():
    first, again, other = SeedStream(1), SeedStream(1), SeedStream(2)
    seeds = [first.next() for _ in range(1000)]
    assert seeds == [again.next() for _ in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert not set(seeds) & {other.next() for _ in range(1000)}
