"""Web pages of other origins, and a server behind a path."""

from __future__ import annotations

import pytest

from jaxsgl.command_line import parse_command_line
from jaxsgl.config import ConfigError, ServerConfig
from jaxsgl.metrics import Metrics
from server.app import create_app
from tests.server.conftest import Served, serve
from tests.server.fake_engine import FakeEngine
from tests.server.test_openai_routes import TEXT

PAGE = "https://app.example.com"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def parsed(*args: str) -> ServerConfig:
    (config,) = parse_command_line(args, "prog", "", ServerConfig)
    return config


async def asked(
    served: Served, method: str, path: str, headers: dict[str, str]
) -> tuple[int, dict[str, str]]:
    async with served.session.request(method, served.url + path, headers=headers) as response:
        return response.status, {
            name.lower(): value
            for name, value in response.headers.items()
            if name.lower().startswith("access-control") or name.lower() == "vary"
        }


async def test_a_page_that_is_allowed() -> None:
    async with serve(parsed("--cors-origin", PAGE, "--api-key", "k")) as served:
        code, headers = await asked(served, "OPTIONS", TEXT, PREFLIGHT)
        assert code == 204  # a preflight never carries the key
        assert headers["access-control-allow-origin"] == PAGE
        assert headers["access-control-allow-headers"] == "authorization,content-type"
        assert "POST" in headers["access-control-allow-methods"]
        code, headers = await asked(served, "GET", "/v1/models", {"Origin": PAGE})
        assert code == 401  # which the page may read too
        assert headers["access-control-allow-origin"] == PAGE and headers["vary"] == "Origin"
        assert "X-Request-Id" in headers["access-control-expose-headers"]


async def test_a_streamed_answer_says_so_too() -> None:
    async with serve(parsed("--allowed-origins", "*")) as served:
        body = {"prompt": "a", "max_tokens": 1, "stream": True}
        async with served.session.post(
            served.url + TEXT, json=body, headers={"Origin": PAGE}
        ) as response:
            assert response.headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.parametrize("origin", ["https://evil.example.com", PAGE + ".evil.com", "null"])
async def test_a_page_that_is_not_allowed(origin: str) -> None:
    async with serve(parsed("--cors-origin", PAGE)) as served:
        for method in ("OPTIONS", "GET"):
            _, headers = await asked(served, method, "/v1/models", PREFLIGHT | {"Origin": origin})
            assert headers == {"vary": "Origin"}


async def test_by_default_there_is_nothing_of_it(served: Served) -> None:
    assert await asked(served, "OPTIONS", TEXT, PREFLIGHT) == (405, {})
    assert await asked(served, "GET", "/v1/models", {"Origin": PAGE}) == (200, {})


@pytest.mark.parametrize("flag", ["--root-path", "--fastapi-root-path"])
async def test_paths_under_the_root_path_and_without_it(flag: str) -> None:
    async with serve(parsed(flag, "/llm/v2", "--api-key", "k")) as served:
        for path, code in (("/health", 200), ("/v1/models", 401), ("/nothing", 401)):
            assert (await asked(served, "GET", "/llm/v2" + path, {}))[0] == code
            assert (await asked(served, "GET", path, {}))[0] == code
        key = {"Authorization": "Bearer k"}
        assert (await asked(served, "GET", "/llm/v2/v1/models", key))[0] == 200
        assert (await asked(served, "POST", "/llm/v2/flush_cache", key))[0] == 200
        assert (await asked(served, "GET", "/llm/v1/models", key))[0] == 404


@pytest.mark.parametrize(
    "config",
    [
        ServerConfig(root_path="llm"),
        ServerConfig(root_path="/llm/"),
        ServerConfig(root_path="/{a}"),
        ServerConfig(root_path="/a b"),
        ServerConfig(cors_origin=("example.com",)),
        ServerConfig(cors_origin=("https://example.com/",)),
        ServerConfig(cors_origin=("",)),
    ],
)
def test_what_cannot_be_honoured(config: ServerConfig) -> None:
    with pytest.raises(ConfigError):
        create_app(FakeEngine(), config, Metrics())
