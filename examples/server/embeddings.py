"""How alike texts are to the model: `python examples/server/embeddings.py [URL]`."""

import sys

from openai import OpenAI

TEXTS = ("The cat sleeps on the sofa.", "A kitten naps on the couch.", "Taxes are due in April.")

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
reply = client.embeddings.create(model="default", input=list(TEXTS))
first, *others = (item.embedding for item in reply.data)
for text, other in zip(TEXTS[1:], others, strict=True):
    likeness = sum(x * y for x, y in zip(first, other, strict=True))
    print(f"{likeness:.3f} {text}")
