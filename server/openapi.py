"""/openapi.json, from the declarations of the routes and the types that they decode and encode."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from server.errors import ErrorBody
from server.route import Route

OPENAPI_VERSION = "3.1.0"
_REF = "#/components/schemas/{name}"
_PATH_PARAMETER = re.compile(r"\{(\w+)(?::[^{}]*)?\}")
_NO_NAME = re.compile(r"\W+")
_JSON = "application/json"


def openapi_route(routes: Sequence[Route]) -> Route:
    """GET /openapi.json, which describes `routes` and itself."""

    async def openapi(request: web.Request) -> web.Response:
        """This document."""
        return web.Response(body=data, content_type=_JSON)

    route = Route(method="GET", path="/openapi.json", handler=openapi, answers={200: Any})
    data = msgspec.json.encode(openapi_document([*routes, route]))
    return route


def openapi_document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI description of `routes`."""
    types = [ErrorBody, *_types(routes)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    schema_of = dict(zip(map(_key, types), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = _PATH_PARAMETER.sub(r"{\1}", route.path)
        operation = _Operation(route, schema_of).described()
        paths.setdefault(path, {})[route.method.lower()] = operation
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "jaxsgl", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _types(routes: Sequence[Route]) -> Iterable[Any]:
    for route in routes:
        if route.body is not None:
            yield route.body.type
        if route.events is not None:
            yield route.events
        yield from (answer for answer in route.answers.values() if answer is not bytes)


def _key(kind: Any) -> str:
    """Types such as unions and `Any` are not told apart by identity."""
    return repr(kind)


class _Operation:
    """The description of one route."""

    def __init__(self, route: Route, schema_of: dict[str, dict[str, Any]]) -> None:
        self._route = route
        self._schema_of = schema_of

    def described(self) -> dict[str, Any]:
        route = self._route
        text = inspect.getdoc(route.handler) or ""
        operation: dict[str, Any] = {
            "operationId": f"{route.method.lower()}{_NO_NAME.sub('_', route.path)}".strip("_"),
            "description": " ".join(text.split("\n\n")[0].split()),
            "responses": self._responses(),
        }
        if parameters := [*self._path_parameters(), *self._query_parameters()]:
            operation["parameters"] = parameters
        if route.body is not None:
            content = {_JSON: {"schema": self._schema(route.body.type)}}
            operation["requestBody"] = {"required": route.body_required, "content": content}
        if route.access != "open":
            operation["security"] = [{"key": []}, {}]
        return operation

    def _responses(self) -> dict[str, Any]:
        route = self._route
        responses: dict[str, Any] = {
            str(status): {"description": _phrase(status), "content": self._content(kind)}
            for status, kind in route.answers.items()
        }
        if route.events is not None:
            # OpenAPI 3.1 cannot say what an event holds: the extension names it. A schema beside it
            # is read as that of each event by some, as that of the whole text by others.
            responses["200"]["content"]["text/event-stream"] = {
                "x-event-schema": self._schema(route.events),
            }
        error = {_JSON: {"schema": self._schema(ErrorBody)}}
        for status in route.all_errors:
            responses[str(status)] = {"description": _phrase(status), "content": error}
        return responses

    def _content(self, kind: Any) -> dict[str, Any]:
        if kind is bytes:
            return {self._route.media_type: {"schema": {"type": "string"}}}
        return {_JSON: {"schema": self._schema(kind)}}

    def _schema(self, kind: Any) -> dict[str, Any]:
        return self._schema_of[_key(kind)]

    def _path_parameters(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
            }
            for name in _PATH_PARAMETER.findall(self._route.path)
        ]

    def _query_parameters(self) -> list[dict[str, Any]]:
        if self._route.query is None:
            return []
        _, components = msgspec.json.schema_components([self._route.query])
        schema = components[self._route.query.__name__]
        return [
            {"name": name, "in": "query", "schema": of, "required": name in schema["required"]}
            for name, of in schema["properties"].items()
        ]


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase
