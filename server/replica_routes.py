"""Routes for whoever looks after the replicas."""

from __future__ import annotations

import msgspec
from aiohttp import web

from jaxsgl.interface import ReplicaReport, UnknownReplica
from server.context import CONTEXT
from server.route import Route


class ReplicaList(msgspec.Struct, frozen=True):
    replicas: list[ReplicaReport]


def replica_routes() -> list[Route]:
    return [
        Route(
            method="GET",
            path="/admin/replicas",
            handler=list_replicas,
            access="admin",
            answers={200: ReplicaList},
        ),
        Route(
            method="POST",
            path="/admin/replicas/{replica_id}/drain",
            handler=drain,
            access="admin",
            answers={202: ReplicaReport},
            errors=(404,),
        ),
        Route(
            method="POST",
            path="/admin/replicas/{replica_id}/restart",
            handler=restart,
            access="admin",
            answers={202: ReplicaReport},
            errors=(404,),
        ),
    ]


async def list_replicas(request: web.Request) -> web.Response:
    """How each replica is doing."""
    return _json(ReplicaList(request.app[CONTEXT].engine.replicas()))


async def drain(request: web.Request) -> web.Response:
    """Send a replica nothing new, let its requests end, and stop it. What has not ended when
    --drain-timeout-s is over moves to another replica. Answers at once: the state in
    /admin/replicas is stopped when it is done."""
    replica_id = _replica_id(request)
    request.app[CONTEXT].engine.drain_replica(replica_id)
    return _accepted(request, replica_id)


async def restart(request: web.Request) -> web.Response:
    """Drain a replica and start it again. Also starts one that is stopped or has failed. Answers
    at once: when it is done, the state is ready and the epoch one more."""
    replica_id = _replica_id(request)
    request.app[CONTEXT].engine.restart_replica(replica_id)
    return _accepted(request, replica_id)


def _replica_id(request: web.Request) -> int:
    text = request.match_info["replica_id"]
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UnknownReplica("A replica is named by its number")
    return int(text)


def _accepted(request: web.Request, replica_id: int) -> web.Response:
    return _json(request.app[CONTEXT].engine.replicas()[replica_id], status=202)


def _json(value: msgspec.Struct, status: int = 200) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, content_type="application/json")
