"""The engine's answers to one HTTP request, as one stream, observed on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from jaxsgl.interface import Delta, EngineError, GenerateRequest, InvalidRequest
from server.context import ServerContext
from server.request_log import RequestLog

IndexedDelta = tuple[int, Delta]


async def answer_deltas(
    context: ServerContext, requests: Sequence[GenerateRequest], tenant: str
) -> AsyncGenerator[IndexedDelta, None]:
    """Yield (index of the request, delta) as deltas come, until every request has had its last.

    The requests wait in the name of the `tenant` and share cached prefixes with others of his
    alone. Their ids too are his: the same id may be in use elsewhere.

    Raises the EngineError of the first request that is refused or fails. However it ends, closing
    included, the requests that still run are aborted.
    """
    streams = [_observed(context, request, tenant) for request in requests]
    if len(streams) == 1:
        async with aclosing(streams[0]) as stream:
            async for delta in stream:
                yield 0, delta
        return
    async with aclosing(_merged(streams)) as merged:
        async for indexed in merged:
            yield indexed


async def _merged(
    streams: Sequence[AsyncGenerator[Delta, None]],
) -> AsyncGenerator[IndexedDelta, None]:
    """One outstanding `anext` per stream: a consumer that lags holds every stream back."""
    waiting = {asyncio.ensure_future(anext(s)): i for i, s in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in sorted(done, key=waiting.__getitem__):
                index = waiting.pop(future)
                delta = future.result()
                if delta.finish is None:
                    waiting[asyncio.ensure_future(anext(streams[index]))] = index
                yield index, delta
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


def engine_id(request_id: str, tenant: str) -> str:
    """What the engine calls a tenant's request. The name of the tenant stands for all of them."""
    return f"{tenant}-{request_id}" if tenant else request_id


def _of_tenant(request: GenerateRequest, tenant: str) -> GenerateRequest:
    """No salt or id that a client chooses leads to what is another tenant's: names of tenants are
    of equal length."""
    if not tenant:
        return request
    return msgspec.structs.replace(
        request,
        request_id=engine_id(request.request_id, tenant),
        cache_namespace=f"{tenant}/{request.cache_namespace}",
        tenant=tenant,
    )


async def _observed(
    context: ServerContext, request: GenerateRequest, tenant: str
) -> AsyncGenerator[Delta, None]:
    """`engine.generate` of the tenant's request, its timing and its one end told to metrics and
    log."""
    metrics, config = context.metrics, context.config
    log = RequestLog(config.log_requests_level, request) if config.log_requests else None
    key = context.keys.label(tenant)
    started = time.perf_counter()
    previous: float | None = None
    counted = False
    how = "disconnected"
    try:
        async with aclosing(context.engine.generate(_of_tenant(request, tenant))) as deltas:
            async for delta in deltas:
                now = time.perf_counter()
                if log is not None:
                    log.note(delta)
                if delta.token_ids:
                    if previous is None:
                        metrics.first_token(now - started, key)
                    else:
                        metrics.later_tokens(now - previous, len(delta.token_ids))
                    previous = now
                if delta.finish is not None:
                    metrics.request_finished(delta.finish, now - started)
                    metrics.key_served(key, delta.usage)
                    counted, how = True, delta.finish.kind
                yield delta
        if not counted:
            raise EngineError("The engine ended the answer without a reason")
    except Exception as error:
        if isinstance(error, InvalidRequest) and error.param == "request_id":
            message = f"request id {request.request_id!r} is in use"
            error = InvalidRequest(message, param="rid")
        if isinstance(error, EngineError) and error.status < 500:
            metrics.request_refused()
            how = "refused"
        else:
            metrics.request_failed()
            how = "error"
        counted = True
        raise error
    finally:
        if not counted:
            metrics.request_disconnected()
        if log is not None:
            log.end(how)
