"""lm-eval's loglikelihoods from a running server against those of HuggingFace transformers.

It needs torch, and so an environment of its own:

    python3.12 -m venv evalenv
    evalenv/bin/pip install lm-eval tenacity torch==2.13.0 transformers==5.23.0 accelerate gguf
    .venv/bin/python -m jaxsgl.serve --model-path MODEL.gguf --port 30000
    evalenv/bin/python -P bench/lm_eval_agreement.py MODEL.gguf http://127.0.0.1:30000

The weights and the tokenizer of the GGUF file are written to a folder in HuggingFace's form; the
task is a JSONL file of its own, so that nothing is downloaded. lm-eval scores it twice, with its
`local-completions` on the server and with its `hf` in float32, and the largest difference of two
loglikelihoods is printed. Exits with 1 if it is above 1e-3.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-3
DOCS = [
    ("The capital of France is", " Paris."),
    ("The capital of France is", " a large and very old elephant."),
    ("Water boils at one hundred", " degrees Celsius at sea level."),
    ("def fibonacci(n):\n    if n < 2:\n        return n\n    return", " fibonacci(n - 1) + 1"),
    ("Größer, weiter,", " höher – und zurück."),
    ("In the beginning", " God created the heaven and the earth."),
    ("1, 2, 3, 4, 5,", " 6, 7, 8, 9, 10"),
    ("Once upon a time there was a king who", " had three daughters, and each of them was wise."),
]
TASK = """\
task: agreement
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{continuation}}}}"
target_delimiter: ""
metric_list:
  - metric: perplexity
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("url")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(args.gguf, folder)
        write_task(folder)
        served = loglikelihoods(
            folder,
            "local-completions",
            {
                "model": "default",
                "base_url": f"{args.url}/v1/completions",
                "tokenizer": str(folder),
                "num_concurrent": 4,
            },
        )
        reference = loglikelihoods(
            folder, "hf", {"pretrained": str(folder), "dtype": "float32", "device": "cpu"}
        )
    largest = max(abs(a - b) for a, b in zip(served, reference, strict=True))
    for (context, continuation), a, b in zip(DOCS, served, reference, strict=True):
        print(f"{a:12.6f} {b:12.6f}  {context[-24:]!r} {continuation!r}")
    print(f"largest difference {largest:.2e} of {len(DOCS)} loglikelihoods")
    return 0 if largest <= TOLERANCE else 1


def export(gguf: Path, folder: Path) -> None:
    """The file's model and tokenizer as transformers reads and writes them."""
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # Its weights are plain float32 by now, and saved only if it no longer says otherwise.
    model.hf_quantizer = None
    del model.config.quantization_config  # pyright: ignore[reportAttributeAccessIssue]
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def write_task(folder: Path) -> None:
    data = folder / "docs.jsonl"
    lines = [json.dumps({"context": c, "continuation": t}) for c, t in DOCS]
    data.write_text("\n".join(lines) + "\n")
    (folder / "agreement.yaml").write_text(TASK.format(data=data))


def loglikelihoods(folder: Path, model: str, model_args: dict[str, Any]) -> list[float]:
    """One per document, in their order."""
    results = simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=["agreement"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=1,
        log_samples=True,
    )
    samples = sorted(results["samples"]["agreement"], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"][0][0] for sample in samples]


if __name__ == "__main__":
    sys.exit(main())
