"""Many prompts in one request, on SGLang's route: `python examples/server/batch.py [URL]`."""

import json
import sys
import urllib.request

CAPITALS = ("France", "Italy", "Spain", "Portugal")

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000"
body = {
    "text": [f"The capital of {country} is" for country in CAPITALS],
    "sampling_params": {"max_new_tokens": 4, "temperature": 0},
    "return_logprob": True,
}
request = urllib.request.Request(
    f"{url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
)
with urllib.request.urlopen(request) as response:
    answers = json.load(response)
for country, answer in zip(CAPITALS, answers, strict=True):
    logprobs = [logprob for logprob, _, _ in answer["meta_info"]["output_token_logprobs"]]
    print(f"{country}:{answer['text']!r}, log-probability {sum(logprobs):.2f}")
