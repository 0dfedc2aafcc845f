"""The aiohttp application, put together."""

from __future__ import annotations

import re
import time

from aiohttp import web

from jaxsgl.config import ConfigError, EngineConfig, ServerConfig
from jaxsgl.interface import ServedEngine
from jaxsgl.metrics import Metrics
from server.access import Keys
from server.admin_routes import admin_routes
from server.anthropic_routes import anthropic_routes
from server.context import CONTEXT, ServerContext
from server.embedding_routes import embedding_routes
from server.grammar_routes import grammar_routes
from server.json_body import MAX_BODY_BYTES
from server.loop_lag import watch_loop_lag
from server.middleware import add_headers, around_handler
from server.native.control_routes import control_routes
from server.native.generate_routes import generate_routes
from server.native.info_routes import info_routes
from server.native.token_routes import token_routes
from server.openai_routes import openai_routes
from server.openapi import openapi_route
from server.operation_routes import operation_routes
from server.replica_routes import replica_routes
from server.responses_routes import keep_responses, responses_routes
from server.route import Access, Route


def create_app(
    engine: ServedEngine,
    config: ServerConfig,
    metrics: Metrics,
    engine_config: EngineConfig | None = None,
) -> web.Application:
    """An application that answers from `engine`, with 503 until that is ready.

    `metrics` is exposed at /metrics as it is; the caller decides whether it watches the engine.
    Raises ConfigError for keys, origins or a path that cannot be used.
    """
    _check(config)
    app = web.Application(middlewares=[around_handler], client_max_size=MAX_BODY_BYTES)
    routes = all_routes()
    app[CONTEXT] = ServerContext(
        engine,
        config,
        metrics,
        Keys.of(config),
        {route.handler: _access(route, config) for route in routes},
        started_at=int(time.time()),
        engine_config=engine_config,
    )
    for root_path in {"", config.root_path}:  # a proxy may pass paths on as they are
        app.add_routes(route.definition(root_path) for route in routes)
    app.on_response_prepare.append(add_headers)
    app.cleanup_ctx.extend((watch_loop_lag, keep_responses))
    return app


def all_routes() -> list[Route]:
    """Every route of the application."""
    routes = [
        *openai_routes(),
        *embedding_routes(),
        *responses_routes(),
        *anthropic_routes(),
        *grammar_routes(),
        *generate_routes(),
        *token_routes(),
        *info_routes(),
        *control_routes(),
        *operation_routes(),
        *admin_routes(),
        *replica_routes(),
    ]
    return [*routes, openapi_route(routes)]


def _access(route: Route, config: ServerConfig) -> Access:
    is_open = route.path == "/metrics" and config.metrics_without_key
    return "open" if is_open else route.access


def _check(config: ServerConfig) -> None:
    if not re.fullmatch(r"(/[\w.~-]+)*", config.root_path, re.ASCII):
        raise ConfigError(f"--root-path {config.root_path!a} is not a path like /llm")
    for origin in config.cors_origin:
        if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            raise ConfigError(f"--cors-origin {origin!a} is not an origin like https://example.com")
