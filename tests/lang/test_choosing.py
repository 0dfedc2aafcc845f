"""The three ways to select, on numbers one can follow."""

from jaxsgl.lang.choosing import Scored, choose

LONG = Scored("long", (1, 2, 3), (-3.0, -0.1, -0.2), (-9.0, -0.1, -0.2))
SHORT = Scored("short", (4,), (-1.5,), (-0.5,))
OTHER = Scored("other", (1, 5), (-3.0, -0.5), (-3.0, -0.5))


def test_by_the_mean() -> None:
    choice = choose([SHORT, LONG, OTHER], "token_length_normalized")
    assert choice.text == "long"
    assert choice.meta["scores"] == choice.meta["normalized_prompt_logprobs"]
    assert choice.meta["input_token_logprobs"][0] == [(-1.5, 4)]


def test_by_the_mean_beyond_what_it_is_without_the_text() -> None:
    choice = choose([SHORT, LONG, OTHER], "unconditional_likelihood_normalized")
    assert choice.text == "long" and choice.meta["scores"][0] == -1.0


def test_token_by_token() -> None:
    assert choose([LONG, SHORT, OTHER], "greedy_token_selection").text == "short"
    assert choose([OTHER, LONG], "greedy_token_selection").text == "long"


def test_token_by_token_a_text_that_is_over_counts_by_its_mean() -> None:
    short, long = Scored("a", (1,), (-1.0,)), Scored("ab", (1, 2), (-1.0, -2.0))
    assert choose([long, short], "greedy_token_selection").text == "a"
    likely = Scored("ac", (1, 3), (-1.0, -0.5))
    assert choose([long, short, likely], "greedy_token_selection").text == "ac"


def test_the_first_of_equals() -> None:
    assert choose([SHORT, Scored("same", (9,), (-1.5,))], "token_length_normalized").text == "short"
