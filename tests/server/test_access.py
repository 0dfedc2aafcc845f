"""Keys: every route asks for one unless it is declared open, and tenants do not meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jaxsgl.command_line import parse_command_line
from jaxsgl.config import ConfigError, ServerConfig
from server.access import Forbidden, Keys, Unauthorized
from server.app import all_routes
from tests.server.conftest import Served, serve
from tests.server.test_openai_routes import TEXT

USER = {"Authorization": "Bearer user-key"}
ADMIN = {"Authorization": "Bearer admin-key"}


def parsed(*args: str) -> ServerConfig:
    (config,) = parse_command_line(args, "prog", "", ServerConfig)
    return config


async def status(served: Served, method: str, path: str, headers: dict[str, str]) -> int:
    sent = {"Content-Type": "application/json", **headers}
    url = served.url + path
    async with served.session.request(method, url, headers=sent, data=b"{") as response:
        if response.status == 401:
            error = (await response.json())["error"]
            assert error["type"] == "authentication_error" and error["code"] == "invalid_api_key"
        return response.status


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer user-key-and-more"},
        {"Authorization": "Bearer user-ke"},
        {"Authorization": "user-key"},
        {"Authorization": "Basic user-key"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer schlüssel"},
        {"X-Api-Key": "wrong"},
    ],
)
async def test_without_a_valid_key_every_route_but_the_open_ones_is_closed(
    headers: dict[str, str],
) -> None:
    config = parsed("--api-key", "user-key", "--admin-api-key", "admin-key")
    async with serve(config) as served:
        closed, is_open = set[str](), set[str]()
        for route in all_routes():
            path = route.path.replace("{", "").replace("}", "").replace(":.+", "")
            for method in {route.method, "PUT"}:
                code = await status(served, method, path, headers)
                (closed if code == 401 else is_open).add(route.path)
        assert "/health" in is_open and "/ready" in is_open
        assert closed == {route.path for route in all_routes() if route.access != "open"} | {
            # PUT is no route of the open ones either, and then it is like any unknown path.
            route.path
            for route in all_routes()
            if route.access == "open"
        }
        assert is_open == {route.path for route in all_routes() if route.access == "open"}
        assert await status(served, "GET", "/no/such/path", headers) == 401
        assert served.engine.requests == []


async def test_raw_bytes_that_are_no_text() -> None:
    async with serve(parsed("--api-key", "user-key")) as closed:
        reader, writer = await closed.connect()
        writer.write(
            b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n"
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401")
        writer.close()


@pytest.mark.parametrize(
    "headers",
    [USER, {"Authorization": "bearer second"}, {"X-Api-Key": "user-key"}, ADMIN],
)
async def test_each_of_several_keys(headers: dict[str, str]) -> None:
    config = parsed("--api-key", "user-key", "--api-key", "second", "--admin-api-key", "admin-key")
    async with serve(config) as served:
        assert await status(served, "GET", "/v1/models", headers) == 200
        assert await status(served, "GET", "/metrics", headers) == 200
        assert await status(served, "GET", "/no/such/path", headers) == 404


async def test_admin_routes_ask_for_the_admin_key_where_there_is_one() -> None:
    async with serve(parsed("--api-key", "user-key", "--admin-api-key", "admin-key")) as served:
        assert await status(served, "POST", "/flush_cache", USER) == 403
        assert await status(served, "POST", "/flush_cache", ADMIN) == 200
    async with serve(parsed("--api-key", "user-key")) as served:
        assert await status(served, "POST", "/flush_cache", {}) == 401
        assert await status(served, "POST", "/flush_cache", USER) == 200
    async with serve(parsed("--admin-api-key", "admin-key")) as served:
        assert await status(served, "GET", "/v1/models", {}) == 200
        assert await status(served, "POST", "/flush_cache", {}) == 401
        assert await status(served, "POST", "/flush_cache", ADMIN) == 200


async def test_metrics_without_a_key() -> None:
    async with serve(parsed("--api-key", "user-key", "--metrics-without-key")) as served:
        assert await status(served, "GET", "/metrics", {}) == 200
        assert await status(served, "GET", "/v1/models", {}) == 401


async def namespaces(config: ServerConfig, *sent: tuple[dict[str, str], Any]) -> list[str]:
    """The cache namespaces of requests with these headers and bodies."""
    async with serve(config) as served:
        for headers, body in sent:
            async with served.session.post(
                served.url + TEXT, json={"prompt": "a", "max_tokens": 1} | body, headers=headers
            ) as response:
                assert response.status == 200
        return [request.cache_namespace for request in served.engine.requests]


async def test_holders_of_different_keys_share_no_cache() -> None:
    one, other = USER, {"Authorization": "Bearer second"}
    config = parsed("--api-key", "user-key", "--api-key", "second")
    first, again, second, salted = await namespaces(
        config, (one, {}), (one, {}), (other, {}), (one, {"cache_salt": "x"})
    )
    assert first == again
    assert len({first, second, salted}) == 3
    (stolen,) = await namespaces(config, (other, {"cache_salt": first}))
    assert stolen not in (first, salted)
    assert "user-key" not in first


async def test_responses_are_for_the_key_that_made_them() -> None:
    other = {"Authorization": "Bearer second"}
    config = parsed("--api-key", "user-key", "--api-key", "second", "--admin-api-key", "admin-key")
    async with serve(config) as served:
        url = served.url + "/v1/responses"
        body = {"model": "default", "input": "abc", "max_output_tokens": 3}
        async with served.session.post(url, json=body, headers=USER) as response:
            name = (await response.json())["id"]
        follow_up = body | {"previous_response_id": name}
        for headers, code in ((USER, 200), (other, 404), (ADMIN, 404)):
            assert await status(served, "GET", f"/v1/responses/{name}", headers) == code
            assert await status(served, "POST", f"/v1/responses/{name}/cancel", headers) == code
            async with served.session.post(url, json=follow_up, headers=headers) as response:
                assert response.status == (200 if code == 200 else 400)
                if code != 200:
                    assert (await response.json())["error"]["param"] == "previous_response_id"


async def test_a_request_names_the_holder_of_its_key_and_not_the_key() -> None:
    config = parsed("--api-key", "user-key", "--api-key", "second")
    async with serve(config) as served:
        for key, salt in (("user-key", "x"), ("user-key", "y"), ("second", "x")):
            sent = {"Authorization": f"Bearer {key}"}
            body = {"prompt": "a", "max_tokens": 1, "cache_salt": salt}
            async with served.session.post(served.url + TEXT, json=body, headers=sent) as response:
                assert response.status == 200
        first, again, second = (request.tenant for request in served.engine.requests)
    assert first == again != second
    assert first and second and "user-key" not in first


async def test_without_keys_all_share_a_cache_but_for_their_salt() -> None:
    found = await namespaces(ServerConfig(), (USER, {}), ({}, {}), ({}, {"cache_salt": "x"}))
    assert found == ["", "", "x"]


def test_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the team\nuser-key\n\n  second  \n")
    keys = Keys.of(parsed("--api-key-file", str(path), "--api-key", "third"))
    tenants = {
        keys.tenant("key", {"Authorization": f"Bearer {key}"})
        for key in ("user-key", "second", "third")
    }
    assert len(tenants) == 3 and "" not in tenants
    with pytest.raises(Unauthorized):
        keys.tenant("key", {"Authorization": "Bearer # of the team"})
    with pytest.raises(Unauthorized):
        keys.tenant("admin", {})


def test_the_key_of_a_user_is_not_the_admins() -> None:
    keys = Keys(("user",), ("admin",))
    with pytest.raises(Forbidden):
        keys.tenant("admin", {"Authorization": "Bearer user"})
    assert keys.tenant("open", {}) == ""
    assert keys.tenant("key", {"Authorization": "Bearer admin"}) != ""


def test_metrics_tell_keys_by_their_number() -> None:
    keys = Keys(("one", "two"), ("boss",))
    sent = [{"Authorization": f"Bearer {key}"} for key in ("one", "two", "boss")]
    assert [keys.label(keys.tenant("key", each)) for each in sent] == ["1", "2", "admin-1"]
    assert keys.label("") == ""


@pytest.mark.parametrize("key", ["", " ", "a b", "schlüssel", "x" * 513, "line\nbreak"])
def test_keys_that_no_client_could_send(key: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII"):
        Keys((key,))


@pytest.mark.parametrize("text", [None, "# nothing\n", "\xff"])
def test_files_that_hold_no_keys(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="--api-key-file"):
        Keys.of(ServerConfig(api_key_file=str(path)))
