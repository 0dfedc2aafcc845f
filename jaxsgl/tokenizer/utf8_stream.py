"""Bytes of one answer, arriving in pieces, turned into text."""

from __future__ import annotations

import codecs


class Utf8Stream:
    """Decodes UTF-8 that tokens may cut anywhere.

    The texts returned, joined, are what decoding all bytes at once with `errors="replace"` gives:
    the start of a character is held back until its end arrives, and what can never become a
    character turns into U+FFFD.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Return what was held back; no more bytes will come."""
        return self._decoder.decode(b"", final=True)
