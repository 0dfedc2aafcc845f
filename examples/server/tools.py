"""Let the model call a function and tell it the result: `python examples/server/tools.py`."""

import json
import sys
from typing import Any

from openai import OpenAI

DEGREES = {"Paris": 18, "Rome": 24, "Oslo": 7}


def temperature(city: str) -> str:
    return f"{DEGREES[city]} degrees"


parameters = {
    "type": "object",
    "properties": {"city": {"enum": list(DEGREES)}},
    "required": ["city"],
    "additionalProperties": False,
}
description = "The temperature in a city now."
function = {"name": "temperature", "description": description, "parameters": parameters}
tools: Any = [{"type": "function", "function": function}]
messages: list[Any] = [{"role": "user", "content": "How warm is it in Rome?"}]

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000"
client = OpenAI(base_url=f"{url}/v1", api_key="none")
# A small model seldom calls a function by itself: it has to, and its call is held to the schema.
asked = client.chat.completions.create(
    model="default",
    messages=messages,
    tools=tools,
    tool_choice="required",
    parallel_tool_calls=False,
    temperature=0,
    max_tokens=64,
)
message = asked.choices[0].message
messages.append(message)
for call in message.tool_calls or ():
    if call.type == "function":
        arguments = json.loads(call.function.arguments)
        result = temperature(**arguments)
        print(f"{call.function.name}({arguments}) = {result}")
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

answer = client.chat.completions.create(
    model="default", messages=messages, temperature=0, max_tokens=32
)
print(answer.choices[0].message.content)
