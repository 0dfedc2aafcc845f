"""Arguments of SGLang's shape as requests."""

import pytest

from jaxsgl.interface import InvalidRequest, SamplingParams, TextPrompt, TokenPrompt
from jaxsgl.offline.calls import make_call
from jaxsgl.offline.sampling import parse_sampling


def test_sampling_params_as_sglang_names_them():
    assert parse_sampling(None) == parse_sampling({}) == SamplingParams(max_tokens=128)
    assert parse_sampling(SamplingParams()) == SamplingParams()
    given = {
        "max_new_tokens": 5,
        "min_new_tokens": 2,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 1 << 30,
        "min_p": 0.1,
        "stop": "end",
        "stop_token_ids": [3],
        "ignore_eos": True,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "sampling_seed": 7,
        "logit_bias": {"4": 1.5},
        "n": 1,
    }
    assert parse_sampling(given) == SamplingParams(
        max_tokens=5,
        min_tokens=2,
        temperature=0.0,
        top_p=0.5,
        top_k=1 << 30,
        min_p=0.1,
        stop=("end",),
        stop_token_ids=(3,),
        ignore_eos=True,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        seed=7,
        logit_bias={4: 1.5},
    )
    nothing = {"stop": None, "stop_token_ids": None, "logit_bias": None, "max_new_tokens": None}
    assert parse_sampling(nothing) == SamplingParams()


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"max_tokens": 5}, "'max_tokens' is not supported; known: max_new_tokens,"),
        ({"tools": []}, "'tools' is not supported"),
        ({"n": 2}, "n must be 1"),
        ({"temperature": "hot"}, "Expected `float`, got `str`"),
        ({"stop": [1]}, "Expected `str`, got `int`"),
    ],
)
def test_sampling_params_that_are_refused(params, line):
    with pytest.raises(InvalidRequest, match=line):
        parse_sampling(params)


def test_one_prompt_or_a_list_of_them():
    call = make_call("a", {"max_new_tokens": 3}, None, rid="r", priority=4)
    (request,) = call.requests
    assert not call.is_list
    assert (request.request_id, request.priority) == ("r", 4)
    assert request.prompt == TextPrompt("a") and request.sampling.max_tokens == 3

    call = make_call(["a", "b"], [{"max_new_tokens": 3}, SamplingParams(max_tokens=4)], None)
    assert call.is_list
    assert [request.sampling.max_tokens for request in call.requests] == [3, 4]
    assert len({request.request_id for request in call.requests}) == 2

    assert make_call(None, None, [1, 2]).requests[0].prompt == TokenPrompt([1, 2])
    assert not make_call(None, None, (1, 2)).is_list
    call = make_call(None, None, [[1, 2], [3]])
    assert call.is_list
    assert [request.prompt for request in call.requests] == [TokenPrompt([1, 2]), TokenPrompt([3])]
    for empty in (make_call([], None, None), make_call(None, None, [])):
        assert empty.is_list and empty.requests == []


def test_log_probabilities():
    call = make_call("a", None, None, return_logprob=True, top_logprobs_num=2)
    sampling = call.requests[0].sampling
    assert sampling.logprobs == 2 and not sampling.prompt_logprobs
    call = make_call("a", None, None, return_logprob=True, logprob_start_len=1)
    sampling = call.requests[0].sampling
    assert sampling.logprobs == 0 and sampling.prompt_logprobs
    assert sampling.prompt_logprobs_from == 1
    call = make_call("a", None, None, logprob_start_len=1, top_logprobs_num=2)
    assert call.requests[0].sampling == parse_sampling(None)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "give either prompt or input_ids"),
        ({"prompt": "a", "input_ids": [1]}, "give either prompt or input_ids"),
        ({"prompt": ["a", 1]}, "prompt must be a text or a list of texts"),
        ({"input_ids": [[1], 2]}, "input_ids must be token ids or lists of them"),
        ({"prompt": ["a", "b"], "sampling_params": [{}]}, "1 sampling_params for 2 prompts"),
        ({"prompt": ["a", "b"], "rid": "r"}, "1 rid for 2 prompts"),
        ({"prompt": "a", "logprob_start_len": -2}, "logprob_start_len must be at least -1"),
    ],
)
def test_arguments_that_are_refused(arguments, line):
    given = {"prompt": None, "sampling_params": None, "input_ids": None} | arguments
    with pytest.raises(InvalidRequest, match=line):
        make_call(**given)


def test_an_argument_that_does_not_exist():
    with pytest.raises(TypeError, match="no argument 'lora_path'"):
        make_call("a", None, None, lora_path="x")
