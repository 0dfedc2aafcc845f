"""Routes that change what the engine is doing: abort, pause, profile."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from jaxsgl.interface import InvalidRequest, PauseMode
from server.context import CONTEXT, ready_engine
from server.deltas import engine_id
from server.json_body import read_json
from server.native.generate_body import RequestName
from server.replying import json_response
from server.route import ENGINE_ERRORS, Route

MAX_PROFILE_S = 600.0


class AbortBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /abort_request"""

    rid: RequestName | None = None
    """A request's id, or what its id begins with before a hyphen: that of a whole batch, or the id
    of an answer that has several choices."""
    abort_all: bool = False


class PauseBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /pause_generation"""

    mode: PauseMode = "abort"
    """abort ends what runs; in_place keeps its KV; retract gives it up, to compute it again."""


class StartProfileBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /start_profile"""

    duration_s: Annotated[float, Meta(gt=0, le=MAX_PROFILE_S)] = 60.0
    """The profile ends by then, if /stop_profile does not end it before."""


class DoneReply(Struct, frozen=True):
    status: str


class ProfileReply(Struct, frozen=True):
    status: str
    folder: str
    """On the machine of the server; TensorBoard and xprof read it."""


ABORT_DECODER = msgspec.json.Decoder(AbortBody)
PAUSE_DECODER = msgspec.json.Decoder(PauseBody)
START_PROFILE_DECODER = msgspec.json.Decoder(StartProfileBody)


def control_routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/abort_request",
            handler=abort_request,
            access="admin",
            body=ABORT_DECODER,
            answers={200: DoneReply},
            errors=ENGINE_ERRORS,
        ),
        Route(
            method="POST",
            path="/pause_generation",
            handler=pause_generation,
            access="admin",
            body=PAUSE_DECODER,
            body_required=False,
            answers={200: DoneReply},
            errors=ENGINE_ERRORS,
        ),
        Route(
            method="POST",
            path="/continue_generation",
            handler=continue_generation,
            access="admin",
            answers={200: DoneReply},
            errors=ENGINE_ERRORS,
        ),
        Route(
            method="POST",
            path="/start_profile",
            handler=start_profile,
            access="admin",
            body=START_PROFILE_DECODER,
            body_required=False,
            answers={200: ProfileReply},
            errors=ENGINE_ERRORS,
        ),
        Route(
            method="POST",
            path="/stop_profile",
            handler=stop_profile,
            access="admin",
            answers={200: DoneReply},
            errors=ENGINE_ERRORS,
        ),
    ]


async def abort_request(request: web.Request) -> web.Response:
    """End requests and what is held for them; their readers get what there is of the answer, with
    finish reason "abort". 200 also if there is none of that id. An ordinary key reaches the
    requests of that key alone."""
    engine = ready_engine(request)
    body = await read_json(request, ABORT_DECODER)
    if not body.abort_all and body.rid is None:
        raise InvalidRequest("Send rid, or abort_all: true", param="rid")
    for tenant in request.app[CONTEXT].keys.reach(request.headers):
        if not body.abort_all:
            engine.abort(engine_id(body.rid or "", tenant))
        elif tenant:
            engine.abort(tenant)
        else:
            engine.abort_all()
    return json_response(DoneReply("aborted"))


async def pause_generation(request: web.Request) -> web.Response:
    """Compute nothing more until /continue_generation. Requests are still accepted, and wait."""
    engine = ready_engine(request)
    body = await read_json(request, PAUSE_DECODER, default=PauseBody())
    await engine.pause(body.mode)
    return json_response(DoneReply("paused"))


async def continue_generation(request: web.Request) -> web.Response:
    """The end of a pause; without effect if there is none."""
    await ready_engine(request).resume()
    return json_response(DoneReply("running"))


async def start_profile(request: web.Request) -> web.Response:
    """Have jax's profiler write what the devices do to a new folder in that of --profile-dir."""
    engine = ready_engine(request)
    body = await read_json(request, START_PROFILE_DECODER, default=StartProfileBody())
    parent = request.app[CONTEXT].config.profile_dir or tempfile.gettempdir()
    folder = Path(parent) / time.strftime("jaxsgl-profile-%Y%m%d-%H%M%S")
    await engine.start_profile(str(folder), body.duration_s)
    return json_response(ProfileReply("profiling", str(folder)))


async def stop_profile(request: web.Request) -> web.Response:
    """Returns once the profile is written."""
    await ready_engine(request).stop_profile()
    return json_response(DoneReply("written"))
