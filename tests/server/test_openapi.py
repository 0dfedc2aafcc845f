"""The document at /openapi.json is true: a stranger's tool calls every route by it."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi import checks

from jaxsgl.config import ServerConfig
from server.app import all_routes
from server.openapi import openapi_document
from tests.server.conftest import serve

DOCUMENT = openapi_document(all_routes())
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


def load(document: dict[str, Any]) -> schemathesis.BaseSchema:
    generation = GenerationConfig(with_security_parameters=False)
    project = ProjectConfig(generation=generation)
    return schemathesis.openapi.from_dict(
        document, config=SchemathesisConfig(projects=ProjectsConfig(default=project))
    )


SCHEMA = load(DOCUMENT)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server over the fake engine, in a thread of its own: the tool knows no event loop."""
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    up = threading.Event()
    urls: list[str] = []

    async def run() -> None:
        async with serve(ServerConfig()) as served:
            urls.append(served.url)
            up.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert up.wait(30)
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def check(case: schemathesis.Case, url: str) -> None:
    case.call_and_validate(base_url=url, checks=CHECKS, timeout=20)


def bounded(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@SCHEMA.parametrize()
@bounded(5)
def test_every_route_answers_as_documented(case: schemathesis.Case, url: str) -> None:
    check(case, url)


@pytest.mark.long
@SCHEMA.parametrize()
@bounded(1500)
def test_every_route_answers_as_documented_at_length(case: schemathesis.Case, url: str) -> None:
    check(case, url)


ARRAY = {"type": "array"}
SHORT = {"type": "object", "properties": {"prompt": {"type": "string", "maxLength": 2}}}
JSON = ("content", "application/json", "schema")


@pytest.mark.parametrize(
    ("path", "method", "mode", "where", "lie"),
    [
        ("/v1/models", "get", GenerationMode.POSITIVE, ("responses", "200", *JSON), ARRAY),
        ("/v1/models/{model}", "get", GenerationMode.POSITIVE, ("responses", "404"), None),
        ("/v1/completions", "post", GenerationMode.NEGATIVE, ("requestBody", *JSON), SHORT),
    ],
)
def test_a_lie_in_the_document_is_found_out(
    url: str, path: str, method: str, mode: GenerationMode, where: tuple[str, ...], lie: Any
) -> None:
    document = copy.deepcopy(DOCUMENT)
    part = document["paths"][path][method]
    for name in where[:-1]:
        part = part[name]
    if lie is None:
        del part[where[-1]]
    else:
        part[where[-1]] = lie

    @bounded(50)
    @given(case=load(document)[path][method].as_strategy(generation_mode=mode))
    def call(case: schemathesis.Case) -> None:
        check(case, url)

    with pytest.raises(FailureGroup):
        call()


def test_every_route_is_in_docs_api() -> None:
    text = (Path(__file__).parents[2] / "docs/api.md").read_text()
    assert [path for path in DOCUMENT["paths"] if f"{path}`" not in text] == []
