"""The examples of docs/structured-output.md, run as they stand there."""

import json
import re
import subprocess
import sys

import jsonschema
import pytest

from tests.e2e.http_client import HttpClient
from tests.e2e.server_process import ROOT

PAGE = (ROOT / "docs/structured-output.md").read_text()
REQUESTS = re.findall(r"```http\nPOST (\S+)\n\n(.*?)```", PAGE, re.DOTALL)
SCRIPTS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_there_are_examples():
    assert len(REQUESTS) == 5 and len(SCRIPTS) == 1


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_a_request(client: HttpClient, path: str, body: str):
    asked = json.loads(body)
    status, reply = await client.post(path, body.encode())
    assert status == 200, reply
    if path == "/v1/grammars/check":
        assert (reply["forced"], reply["prefix_fits"]) == ("o", True)
        return
    (choice,) = reply["choices"]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    if "regex" in asked:
        assert re.fullmatch(asked["regex"], text)
    elif "choice" in asked:
        assert text in asked["choice"]
    elif "lark" in asked:
        assert text.startswith("SELECT")
    elif choice["finish_reason"] == "stop":
        schema = asked["response_format"]["json_schema"]["schema"]
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script(script: str):
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    year, answer = run.stdout.splitlines()
    assert re.fullmatch("(19|20)[0-9]{2}", year)
    assert answer in ("yes", "no")
