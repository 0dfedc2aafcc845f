"""Perplexity: the sum by hand, and the default model against HuggingFace's."""

import json
import math

import pytest

import jaxsgl
from bench import perplexity
from jaxsgl.config import EngineConfig
from jaxsgl.loading.model_files import open_model
from tests.loading.tiny_models import GOLDENS


class Scores:
    """Answers like an engine: token t of a prompt has log-probability -t / 10."""

    def generate(self, input_ids, **options):
        assert options["return_logprob"] and options["logprob_start_len"] == 0
        return [
            {
                "meta_info": {
                    "input_token_logprobs": [(None, ids[0], None), *map(self.entry, ids[1:])]
                }
            }
            for ids in input_ids
        ]

    def entry(self, token_id):
        return (-token_id / 10, token_id, None)


def test_windows_cover_the_text_and_drop_a_lonely_token():
    assert perplexity.windows(range(7), 3) == [[0, 1, 2], [3, 4, 5]]
    assert perplexity.windows(range(8), 3) == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_the_first_token_of_a_window_does_not_count():
    summary = perplexity.run(Scores(), [[90, 1, 2], [80, 3]])
    assert summary["num_scored"] == 3
    assert summary["nats_per_token"] == pytest.approx(0.2)
    assert summary["perplexity"] == pytest.approx(math.exp(0.2))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_default_model_against_huggingface():
    """Within 0.1 % of transformers' model with weights dequantised to float32."""
    golden = json.loads((GOLDENS / "smollm2_perplexity.json").read_text())
    _, tokenizer = open_model(EngineConfig())
    token_ids = tokenizer.encode(perplexity.TEXT.read_text())[: golden["num_tokens"]]
    pieces = perplexity.windows(token_ids, golden["window_len"])
    with jaxsgl.Engine(dtype="float32") as engine:
        summary = perplexity.run(engine, pieces)
    assert summary["num_scored"] == golden["num_scored"]
    assert summary["perplexity"] == pytest.approx(golden["perplexity"], rel=1e-3)
