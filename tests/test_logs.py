"""Lines for people and for machines."""

from __future__ import annotations

import io
import json
import logging

import pytest

from jaxsgl.logs import LogSettings, log_fields, set_up_logging

pytestmark = pytest.mark.usefixtures("logging_restored")
log = logging.getLogger("jaxsgl.test")


def written(settings: LogSettings) -> str:
    stream = io.StringIO()
    set_up_logging(settings, stream)
    log.debug("hidden")
    log.warning("two\nlines %d", 1)
    log_fields(log, logging.INFO, "ended", {"id": "a", "text": 'b "c"\n', "n": 1, "s": 0.12345})
    try:
        raise ValueError("bad")
    except ValueError:
        log.exception("broke")
    return stream.getvalue()


def test_json_has_one_object_a_line():
    lines = [json.loads(line) for line in written(LogSettings("info", "json")).splitlines()]
    warning, ended, broke = lines
    assert warning["level"] == "warning" and warning["message"] == "two\nlines 1"
    assert warning["logger"] == "jaxsgl.test" and warning["time"].endswith("+00:00")
    assert ended["message"] == "ended"
    assert (ended["id"], ended["text"], ended["n"], ended["s"]) == ("a", 'b "c"\n', 1, 0.12345)
    assert "ValueError: bad" in broke["stack"]


def test_text():
    text = written(LogSettings("info", "text"))
    assert 'INFO jaxsgl.test: ended id=a text="b \\"c\\"\\n" n=1 s=0.123\n' in text
    assert "hidden" not in text and "Traceback" in text


def test_set_up_twice_prints_once():
    written(LogSettings("debug", "text"))
    assert written(LogSettings("warning", "text")).count("two\nlines") == 1
