"""`jaxsgl.Engine` with a real, tiny model, one for all tests."""

import gc
import json

import jax
import pytest

import jaxsgl
from jaxsgl.config import ConfigError
from jaxsgl.loading.errors import CheckpointError
from jaxsgl.replicas.launch import StartError
from tests.loading.tiny_models import tiny_model, write_folder
from tests.offline.local_replica import Leftovers

PROMPTS = [[n + 1, 2 * n + 1, 3, 50 - n] * (n % 4 + 1) for n in range(8)]
GREEDY = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("tiny"), tiny_model())


@pytest.fixture(scope="module")
def trace_path(tmp_path_factory):
    return tmp_path_factory.mktemp("trace") / "trace.json"


@pytest.fixture(scope="module")
def engine(folder, trace_path):
    gc.collect()
    leftovers, others = Leftovers(), jax.live_arrays()  # kept, so that no other takes their ids
    settings = {"max_num_reqs": 2, "chunked_prefill_size": 16, "max_total_tokens": 1024}
    with jaxsgl.Engine(
        folder, skip_tokenizer_init=True, page_size=4, step_trace=trace_path, **settings
    ) as engine:
        yield engine
        assert engine.stats().recompiles == 0
    assert not leftovers()
    gc.collect()
    assert {id(array) for array in jax.live_arrays()} <= {id(array) for array in others}
    assert json.loads(trace_path.read_text())["traceEvents"]


def test_together_as_alone(engine):
    together = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY)
    engine.flush_cache()
    alone = [engine.generate(input_ids=prompt, sampling_params=GREEDY) for prompt in PROMPTS]
    assert [a["output_ids"] for a in together] == [a["output_ids"] for a in alone]
    assert all(len(answer["output_ids"]) == 12 for answer in alone)
    assert len({tuple(answer["output_ids"]) for answer in alone}) > 4
    again = engine.generate(input_ids=PROMPTS[3], sampling_params=GREEDY)
    assert again["output_ids"] == alone[3]["output_ids"]
    assert again["meta_info"]["cached_tokens"] > 8


def test_a_draw_depends_on_its_seed_alone(engine):
    params = [{"max_new_tokens": 12, "sampling_seed": n % 4, "ignore_eos": True} for n in range(8)]
    answers = engine.generate(input_ids=[[5, 6, 7]] * 8, sampling_params=params)
    drawn = [answer["output_ids"] for answer in answers]
    assert drawn[:4] == drawn[4:]
    assert len({tuple(token_ids) for token_ids in drawn}) == 4


def test_log_probabilities_of_an_answer_are_those_of_the_same_prompt(engine):
    answer = engine.generate(input_ids=[5, 6, 7], sampling_params=GREEDY, return_logprob=True)
    drawn = answer["meta_info"]["output_token_logprobs"]
    whole = engine.generate(
        input_ids=[5, 6, 7, *answer["output_ids"]],
        sampling_params={"max_new_tokens": 1},
        return_logprob=True,
        logprob_start_len=3,
    )
    scored = whole["meta_info"]["input_token_logprobs"]
    assert [entry[1] for entry in scored] == answer["output_ids"]
    assert [entry[0] for entry in scored] == pytest.approx([entry[0] for entry in drawn], abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "error", "line"),
    [
        ({"pages": 1}, ConfigError, "pages is not a setting"),
        ({"model_path": "/no/such/model"}, CheckpointError, "no such file or folder"),
        ({"mesh": "tp=0"}, StartError, "--mesh 'tp=0' is not understood"),
        ({"max_itl_ms": 0}, StartError, "--max-itl-ms must be above 0"),
        ({"max_itl_ms": 50, "mixed_chunk": False}, StartError, "--max-itl-ms needs --enable-ch"),
    ],
)
def test_an_engine_that_cannot_start_says_why(folder, settings, error, line):
    leftovers = Leftovers()
    with pytest.raises(error, match=line) as caught:
        jaxsgl.Engine(**{"model_path": folder, "skip_tokenizer_init": True} | settings)
    assert "\n" not in str(caught.value)
    assert not leftovers()
