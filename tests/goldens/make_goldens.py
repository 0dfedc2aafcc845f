"""Writes the reference outputs that the tests compare with, using PyTorch and HuggingFace
transformers.

The engine's own environment has no torch. Make one apart, and run this from anywhere:

    python3.11 -m venv torchenv torchenv/bin/pip install torch==2.13.0 transformers==5.23.0
    tokenizers==0.23.3 gguf==0.19.0 accelerate torchenv/bin/python tests/goldens/make_goldens.py
    path/to/SmolLM2-135M-Instruct.Q4_1.gguf

Use a build of torch for the CPU. Everything is computed in float32 there; a run takes minutes and
changes nothing when the versions are the same. Files written beside this one:

- smollm2_greedy.json: for each prompt of prompts.json the prompt's ids, 32 greedy ids (end of
  sequence ignored) and the smallest gap between best and second-best logit on the way;
- smollm2_bfloat16.json: for each of these prompts the gap between best and second-best logit at
  each of the 32 tokens in float32, and what the same model in bfloat16 finds best there, fed the
  same tokens;
- smollm2_logprobs.json: for three of them the log-probabilities of prompt and answer tokens, and
  the five most likely at each answer token;
- smollm2_tensors.json: 16 evenly spaced values of some tensors as transformers dequantises and
  orders them;
- tokenizer.json: the ids of the strings in tokenizer_strings.json;
- smollm2_perplexity.json: perplexity of SmolLM2 on the text of `bench.perplexity`, and of what;
- tiny_*.npz: small random models: `config` (JSON as in config.json), weights in HuggingFace naming
  as float16, which holds them exactly, `input_ids` [48] and `logits` [48, vocab] in float32.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

HERE = Path(__file__).parent
TEXT = HERE.parents[1] / "bench" / "texts" / "persuasion.txt"
NUM_TEXT_TOKENS = 20_000
WINDOW_LEN = 1024
NUM_GREEDY = 32
NUM_TOP = 5
NUM_TENSOR_VALUES = 16
TENSORS = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.29.self_attn.k_proj.weight",
    "model.layers.7.self_attn.v_proj.weight",
    "model.layers.7.mlp.down_proj.weight",
    "model.norm.weight",
)
LOGPROB_PROMPTS = ("capital", "python", "accents")
TINY_SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # So short that the eight frequencies of a 16-wide head fall into all three bands of the
    # formula.
    "original_max_position_embeddings": 32,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="write the reference outputs of the tests")
    parser.add_argument("gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    gguf_path: Path = parser.parse_args().gguf
    torch.set_num_threads(2)

    write_tiny_models()
    tokenizer = load_tokenizer(gguf_path)
    strings = json.loads((HERE / "tokenizer_strings.json").read_text())
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in strings]
    write_json("tokenizer.json", {"strings": strings, "ids": ids})

    model = AutoModelForCausalLM.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32, attn_implementation="eager"
    )
    made_with = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "gguf_sha256": hashlib.sha256(gguf_path.read_bytes()).hexdigest(),
    }
    write_tensors(model)
    write_smollm2(model, tokenizer, made_with)
    write_perplexity(model, tokenizer, made_with)
    write_bfloat16(model, made_with)


def load_tokenizer(gguf_path: Path) -> PreTrainedTokenizerFast:
    """Return SmolLM2's tokenizer from its GGUF.

    Transformers does not read `tokenizer.ggml.pre`; the pre-tokenizer set here is the one in the
    `tokenizer.json` that HuggingFaceTB publishes with the model.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return tokenizer


def write_tensors(model: PreTrainedModel) -> None:
    tensors = {}
    for name in TENSORS:
        tensor = model.get_parameter(name).detach()
        places = torch.linspace(
            0, tensor.numel() - 1, NUM_TENSOR_VALUES, dtype=torch.float64
        ).long()
        values = tensor.flatten()[places].tolist()
        tensors[name] = {"shape": list(tensor.shape), "places": places.tolist(), "values": values}
    write_json("smollm2_tensors.json", tensors)


@torch.inference_mode()
def write_smollm2(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, made_with: dict[str, str]
) -> None:
    greedy: list[dict[str, Any]] = []
    logprobs: list[dict[str, Any]] = []
    for prompt in json.loads((HERE / "prompts.json").read_text()):
        prompt_ids: list[int] = tokenizer.apply_chat_template(
            prompt["messages"], add_generation_prompt=True, return_dict=False
        )
        output_ids, step_logits = decode_greedily(model, prompt_ids)
        best = torch.topk(step_logits, 2).values
        greedy.append(
            {
                **prompt,
                "prompt_ids": prompt_ids,
                "output_ids": output_ids,
                "text": tokenizer.decode(output_ids),
                "min_margin": round(float((best[:, 0] - best[:, 1]).min()), 6),
            }
        )
        if prompt["name"] in LOGPROB_PROMPTS:
            logprobs.append({"name": prompt["name"], **score(model, prompt_ids, output_ids)})
    write_json("smollm2_greedy.json", {"made_with": made_with, "prompts": greedy})
    write_json("smollm2_logprobs.json", {"made_with": made_with, "prompts": logprobs})


@torch.inference_mode()
def write_perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, made_with: dict[str, str]
) -> None:
    ids = tokenizer.encode(TEXT.read_text(), add_special_tokens=False)[:NUM_TEXT_TOKENS]
    total, num_scored = 0.0, 0
    for start in range(0, len(ids), WINDOW_LEN):
        window = torch.tensor(ids[start : start + WINDOW_LEN])
        logprobs = torch.log_softmax(model(window[None]).logits[0, :-1].double(), dim=-1)
        total += float(logprobs.gather(1, window[1:, None]).sum())
        num_scored += len(window) - 1
    value = {
        "made_with": made_with,
        "num_tokens": len(ids),
        "window_len": WINDOW_LEN,
        "num_scored": num_scored,
        "perplexity": math.exp(-total / num_scored),
    }
    write_json("smollm2_perplexity.json", value)


def write_bfloat16(model: PreTrainedModel, made_with: dict[str, str]) -> None:
    """Of the answers in smollm2_greedy.json; the model is bfloat16 afterwards."""
    answers = json.loads((HERE / "smollm2_greedy.json").read_text())["prompts"]
    margins = []
    for each in answers:
        best = torch.topk(answer_logits(model, each), 2).values
        margins.append(rounded(best[:, 0] - best[:, 1]))
    model.to(torch.bfloat16)
    prompts = [
        {
            "name": each["name"],
            "margins": margin,
            "bfloat16_ids": answer_logits(model, each).argmax(-1).tolist(),
        }
        for each, margin in zip(answers, margins, strict=True)
    ]
    write_json("smollm2_bfloat16.json", {"made_with": made_with, "prompts": prompts})


@torch.inference_mode()
def answer_logits(model: PreTrainedModel, answer: dict[str, Any]) -> torch.Tensor:
    """The logits of each token of an answer, given those before it: float32 [NUM_GREEDY, vocab]."""
    prompt_ids, output_ids = answer["prompt_ids"], answer["output_ids"]
    ids = torch.tensor([prompt_ids + output_ids[:-1]])
    return model(ids).logits[0, len(prompt_ids) - 1 :].float()


def decode_greedily(
    model: PreTrainedModel, prompt_ids: list[int]
) -> tuple[list[int], torch.Tensor]:
    """Return NUM_GREEDY ids and the logits they were taken from, [NUM_GREEDY, vocab]."""
    output_ids: list[int] = []
    step_logits: list[torch.Tensor] = []
    past, fed = None, prompt_ids
    for _ in range(NUM_GREEDY):
        out = model(torch.tensor([fed]), past_key_values=past, use_cache=True)
        past = out.past_key_values
        step_logits.append(out.logits[0, -1])
        fed = [int(step_logits[-1].argmax())]
        output_ids += fed
    return output_ids, torch.stack(step_logits)


def score(model: PreTrainedModel, prompt_ids: list[int], output_ids: list[int]) -> dict[str, Any]:
    """Return log-probabilities of one sequence from a single forward pass over all of it."""
    ids = torch.tensor(prompt_ids + output_ids)
    logprobs = torch.log_softmax(model(ids[None]).logits[0].double(), dim=-1)
    of_next = logprobs[:-1].gather(1, ids[1:, None])[:, 0]
    first = len(prompt_ids) - 1
    top = torch.topk(logprobs[first:-1], NUM_TOP)
    return {
        "prompt_ids": prompt_ids,
        "output_ids": output_ids,
        "prompt_logprobs": rounded(of_next[:first]),
        "output_logprobs": rounded(of_next[first:]),
        "top_ids": top.indices.tolist(),
        "top_logprobs": [rounded(row) for row in top.values],
    }


def rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def write_tiny_models() -> None:
    tied = LlamaConfig(**TINY_SHAPE, tie_word_embeddings=True)
    write_tiny("tiny_llama.npz", LlamaForCausalLM(tied), seed=1)
    scaled = LlamaConfig(**TINY_SHAPE, tie_word_embeddings=False, rope_parameters=LLAMA3_ROPE)
    write_tiny("tiny_llama3_rope.npz", LlamaForCausalLM(scaled), seed=2)
    biased = Qwen2Config(**TINY_SHAPE, tie_word_embeddings=False)
    write_tiny("tiny_qwen2.npz", Qwen2ForCausalLM(biased), seed=3)


@torch.inference_mode()
def write_tiny(name: str, model: PreTrainedModel, seed: int) -> None:
    model.config.architectures = [type(model).__name__]
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        # Matrices keep the scale of their input; norm scales and biases are far from their usual
        # ones and zeros.
        values = 1.0 + 0.3 * noise if "norm" in key else noise * (0.3 if noise.ndim == 1 else 0.125)
        parameter.copy_(values.half().float())
    input_ids = torch.randint(0, model.config.vocab_size, (48,), generator=generator)
    logits = model.float().eval()(input_ids[None]).logits[0]
    weights = {key: parameter.half().numpy() for key, parameter in model.named_parameters()}
    np.savez(
        HERE / name,
        config=np.array(json.dumps(model.config.to_dict())),
        input_ids=input_ids.numpy().astype(np.int32),
        logits=logits.numpy(),
        **weights,
    )


def write_json(name: str, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    (HERE / name).write_text(text.replace('},{"name"', '},\n{"name"') + "\n")


if __name__ == "__main__":
    main()
