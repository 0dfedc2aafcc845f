"""The declaration of a route: what the router, the document at /openapi.json and the check of keys
know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

BODY_ERRORS = (400, 408, 413, 415)
"""What `json_body.read_json` refuses with."""
ENGINE_ERRORS = (400, 503)
"""Of routes that ask the engine something: it may be starting, draining or gone."""
GENERATION_ERRORS = (*ENGINE_ERRORS, 404, 429, 504)
"""Of routes that generate: another model's name, a full queue, a deadline that passed."""

type Access = Literal["open", "key", "admin"]

ACCESS_ERRORS: Mapping[str, tuple[int, ...]] = {"open": (), "key": (401,), "admin": (401, 403)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path. The first paragraph of the handler's docstring describes it.

    500, with a body that tells nothing of the defect, is a possible answer of every route.
    """

    method: Literal["GET", "POST"]
    path: str
    """As aiohttp's router takes it."""
    handler: Handler
    access: Access = "key"
    """Who may call it where keys are asked for: anybody, holders of a key, of the admin's key."""
    body: msgspec.json.Decoder[Any] | None = None
    """What the handler decodes the request with."""
    body_required: bool = True
    query: type[msgspec.Struct] | None = None
    """The parameters of the query string."""
    answers: Mapping[int, Any] = field(default_factory=dict[int, Any])
    """The type of the JSON body by status; bytes stands for `media_type`."""
    media_type: str = "text/plain"
    events: Any = None
    """The type of the JSON in each event of a streamed 200."""
    errors: tuple[int, ...] = ()
    """Statuses that come with an error body, beyond those that follow from `body` and `access`."""

    def definition(self, root_path: str = "") -> web.RouteDef:
        """For aiohttp's router, under a root path."""
        if self.method == "GET":
            return web.get(root_path + self.path, self.handler)  # and HEAD
        return web.route(self.method, root_path + self.path, self.handler)

    @property
    def all_errors(self) -> list[int]:
        """Every status that comes with an error body."""
        body = () if self.body is None else BODY_ERRORS
        return sorted({*self.errors, *body, *ACCESS_ERRORS[self.access], 500} - {*self.answers})
