"""Deltas put together in SGLang's shape."""

import pytest

from jaxsgl.interface import Delta, Finish, TokenLogprob, Usage
from jaxsgl.offline.calls import make_call
from jaxsgl.offline.outputs import Output


def test_an_answer_grows_and_what_was_given_out_stays():
    call = make_call("a", None, None, rid="r")
    output = Output(call.requests[0], call.logprobs)
    output.add(Delta("x", [1], Usage(5, 1, 4)))
    first = output.as_dict()
    last = Delta("yz", [2, 3], Usage(5, 3, 4), Finish("stop", "end"), weight_version="v2")
    output.add(last)
    counts = {"prompt_tokens": 5, "cached_tokens": 4}
    assert first == {
        "text": "x",
        "output_ids": [1],
        "meta_info": {"id": "r", "finish_reason": None, "completion_tokens": 1, **counts},
    }
    reason = {"type": "stop", "matched": "end"}
    assert output.as_dict() == {
        "text": "xyz",
        "output_ids": [1, 2, 3],
        "meta_info": {
            "id": "r",
            "finish_reason": reason,
            "completion_tokens": 3,
            "weight_version": "v2",
            **counts,
        },
    }


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        (Finish("length"), {"type": "length", "length": 1}),
        (Finish("stop", 2), {"type": "stop", "matched": 2}),
        (Finish("abort", message="why"), {"type": "abort", "message": "why"}),
        (Finish("deadline", message="why"), {"type": "deadline", "message": "why"}),
        (Finish("error", message="why"), {"type": "error", "message": "why"}),
    ],
)
def test_finish_reasons(finish, reason):
    call = make_call("a", None, None)
    output = Output(call.requests[0], call.logprobs)
    output.add(Delta("x", [1], Usage(5, 1, 0), finish))
    assert output.as_dict()["meta_info"]["finish_reason"] == reason


@pytest.mark.parametrize(
    ("start_len", "prompt"),
    [
        (-1, []),
        (0, [(None, 8, None), (-0.1, 9, None), (-0.2, 7, None)]),
        (1, [(-0.1, 9, None), (-0.2, 7, None)]),
        (3, []),
    ],
)
def test_log_probabilities(start_len, prompt):
    call = make_call(
        None, None, [8, 9, 7], return_logprob=True, logprob_start_len=start_len, top_logprobs_num=1
    )
    output = Output(call.requests[0], call.logprobs)
    prompt_logprobs = [
        None,
        TokenLogprob(9, -0.1, [(6, -0.05)]),
        TokenLogprob(7, -0.2, [(7, -0.2)]),
    ]
    if start_len < 0:
        prompt_logprobs = None
    drawn = [TokenLogprob(1, -0.5, [(2, -0.25)])]
    output.add(Delta("x", [1], Usage(3, 1, 0), None, drawn, prompt_logprobs))
    output.add(Delta("y", [4], Usage(3, 2, 0), Finish("length"), [TokenLogprob(4, -1.0)]))
    info = output.as_dict()["meta_info"]
    assert info["input_token_logprobs"] == prompt
    assert info["output_token_logprobs"] == [(-0.5, 1, None), (-1.0, 4, None)]
    assert info["output_top_logprobs"] == [[(-0.25, 2, None)], []]
    tops = [None, [(-0.05, 6, None)], [(-0.2, 7, None)]]
    assert info["input_top_logprobs"] == tops[3 - len(prompt) :]
