"""How log records become lines, for people or for machines."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


class LogSettings(msgspec.Struct, frozen=True):
    """What a process prints: the same for the front and its replicas."""

    level: str = "info"
    """Of the least severe messages, as in `ServerConfig`."""
    format: str = "text"


def set_up_logging(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Print records of this level and above to `stream` (None: standard error). May be repeated.

    Of jax's own only those from warning on, unless debugging: at info it tells of every platform
    that this machine lacks.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if settings.format == "json" else text)
    logging.basicConfig(handlers=[handler], force=True)
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    logging.getLogger().setLevel(level)
    jax_level = level if level == logging.DEBUG else max(level, logging.WARNING)
    logging.getLogger("jax").setLevel(jax_level)


def log_fields(logger: logging.Logger, level: int, event: str, fields: dict[str, Any]) -> None:
    """One record: `event name=value ...` as text, the fields as members in JSON.

    Values are what JSON knows. Texts stand quoted in the line, so that it stays one line.
    """
    if logger.isEnabledFor(level):
        words = (f"{name}={_word(value)}" for name, value in fields.items())
        logger.log(level, "%s", " ".join([event, *words]), extra={"fields": fields, "event": event})


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, and the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": getattr(record, "event", None) or record.getMessage(),
        }
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["stack"] = self.formatException(record.exc_info)
        return msgspec.json.encode(entry).decode()


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value:
        return value
    return msgspec.json.encode(value).decode()
