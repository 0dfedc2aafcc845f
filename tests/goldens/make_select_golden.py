"""Writes smollm2_select.json: what HuggingFace transformers thinks of 100 choices of four texts.

Run it as `make_goldens.py`, whose environment and tokenizer it uses. For each item: the text, the
choices, and for each choice the mean log-probability of its tokens in float32. Text and choice are
encoded in one piece; the first token that differs from those of the text alone, for any of an
item's choices, is the first that counts.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from make_goldens import load_tokenizer, rounded, write_json
from transformers import AutoModelForCausalLM

FACTS = (
    ("France", "Paris", "Europe", "French"),
    ("Japan", "Tokyo", "Asia", "Japanese"),
    ("Egypt", "Cairo", "Africa", "Arabic"),
    ("Brazil", "Brasília", "South America", "Portuguese"),
    ("Canada", "Ottawa", "North America", "English"),
    ("Italy", "Rome", "Europe", "Italian"),
    ("Kenya", "Nairobi", "Africa", "Swahili"),
    ("Thailand", "Bangkok", "Asia", "Thai"),
    ("Peru", "Lima", "South America", "Spanish"),
    ("Norway", "Oslo", "Europe", "Norwegian"),
    ("Greece", "Athens", "Europe", "Greek"),
    ("Vietnam", "Hanoi", "Asia", "Vietnamese"),
    ("Mexico", "Mexico City", "North America", "Spanish"),
    ("Turkey", "Ankara", "Asia", "Turkish"),
    ("Poland", "Warsaw", "Europe", "Polish"),
    ("Chile", "Santiago", "South America", "Spanish"),
    ("India", "New Delhi", "Asia", "Hindi"),
    ("Cuba", "Havana", "North America", "Spanish"),
    ("Finland", "Helsinki", "Europe", "Finnish"),
    ("Morocco", "Rabat", "Africa", "Arabic"),
    ("Hungary", "Budapest", "Europe", "Hungarian"),
    ("Iran", "Tehran", "Asia", "Persian"),
    ("Ghana", "Accra", "Africa", "English"),
    ("Sweden", "Stockholm", "Europe", "Swedish"),
    ("Nepal", "Kathmandu", "Asia", "Nepali"),
)
QUESTIONS = (
    ("The capital of {} is", 1),
    ("{} is a country in", 2),
    ("Most people in {} speak", 3),
    # A choice that goes on where the text's last token could end otherwise.
    ("Q: Which city is the seat of {}'s government?\nA: ", 1),
)


def items() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for number, fact in enumerate(FACTS):
        for form, answer in QUESTIONS:
            others = dict.fromkeys(
                FACTS[(number + step) % len(FACTS)][answer] for step in range(len(FACTS))
            )
            space = "" if form.endswith(" ") else " "
            choices = [space + text for text in list(others)[:4]]
            turn = (number + answer) % len(choices)
            text = form.format(fact[0])
            made.append({"text": text, "choices": choices[turn:] + choices[:turn]})
    return made


@torch.inference_mode()
def means(model: Any, tokenizer: Any, text: str, choices: list[str]) -> list[float]:
    base = tokenizer.encode(text, add_special_tokens=False)
    whole = [tokenizer.encode(text + choice, add_special_tokens=False) for choice in choices]
    begin = min(common_len(base, ids) for ids in whole)
    longest = max(map(len, whole))
    # What is filled up behind a sequence changes nothing before it.
    batch = torch.tensor([ids + [0] * (longest - len(ids)) for ids in whole])
    logprobs = torch.log_softmax(model(batch).logits.double(), dim=-1)
    of_next = logprobs[:, :-1].gather(2, batch[:, 1:, None])[:, :, 0]
    scores = [row[begin - 1 : len(ids) - 1].mean() for row, ids in zip(of_next, whole, strict=True)]
    return rounded(torch.stack(scores))


def common_len(a: list[int], b: list[int]) -> int:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    gguf_path: Path = parser.parse_args().gguf
    tokenizer = load_tokenizer(gguf_path)
    model = AutoModelForCausalLM.from_pretrained(
        gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32, attn_implementation="eager"
    )
    made = items()
    for item in made:
        item["scores"] = means(model, tokenizer, item["text"], item["choices"])
    write_json("smollm2_select.json", made)


if __name__ == "__main__":
    main()
