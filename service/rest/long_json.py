"""JSON with a whole image in it, taken apart in small steps: the long text by itself, and the little about it.

A call that parses, copies or decodes twenty megabytes keeps all other threads of the process waiting until it returns,
the event loop first of all. So nothing here is done to more than a piece of the body at a time, and between pieces the
others have their turns. What is no image in a body is bounded before anybody parses it.
"""

import io
import json
import re
import string
import time
from binascii import a2b_base64
from collections.abc import Iterable, Iterator
from typing import Final

STAND_IN: Final = "(the long text)"
"""What stands in the JSON where the long text was; no base64."""

_PIECE: Final = 64 * 1024  # bytes: a quarter of a millisecond, whatever is done to them
_PAUSE_S: Final = 0.0002  # without a pause Python would let others wait for 5 ms, again and again; this lets them in
_MOST_TEXTS: Final = 2048  # each costs some microseconds; the most rois that there can be have half as many
_BACKSLASH: Final = ord("\\")
_WHITESPACE: Final = string.whitespace.encode()  # many encoders break lines
_LONGEST_ESCAPE: Final = len(rb"\u002f")
_LINE_ENDS: Final = (b"\n", b"\r", b"\t", b"\v", b"\f")  # whitespace that is written with a backslash
_CUT_ESCAPE: Final = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")


class TooMuchBesideError(ValueError):
    """There is more in the JSON than a long text and a little about it. The message says what, and how much may be."""


def without_long_text(body: bytes, most_beside: int) -> tuple[bytes, memoryview | None]:
    """Take the one long text out of a JSON document.

    Args:
        body: the document. Whether it is JSON is not found out here.
        most_beside: bytes of all the rest; a text that is longer than half of this is a long one.

    Returns:
        The document with `STAND_IN` in its place; and what was between its quotes, as it was written. None if there is
        none.

    Raises:
        TooMuchBesideError: the rest is longer, or of very many texts, or there are several long ones.
    """
    beside, size, long_text, at = list[bytes](), 0, None, 0
    while at < len(body):
        start = _find(body, b'"', at, at + most_beside - size + 1)
        end = len(body) if start < 0 else _end_of_text(body, start + 1, most_beside // 2)
        if start < 0 or end - start - 1 <= most_beside // 2:
            part = body[at : min(end + 1, at + most_beside + 1)]
        elif long_text is None:
            part, long_text = body[at:start] + b'"' + STAND_IN.encode() + b'"', memoryview(body)[start + 1 : end]
        else:
            raise TooMuchBesideError(f"more than {most_beside} bytes")
        beside.append(part)
        size += len(part)
        if size > most_beside:
            raise TooMuchBesideError(f"more than {most_beside} bytes")
        if len(beside) > _MOST_TEXTS:
            raise TooMuchBesideError(f"more than {_MOST_TEXTS} names and texts")
        at = end + 1
    return b"".join(beside), long_text


def _end_of_text(body: bytes, start: int, most_with_quotes: int) -> int:
    """Where the quote is that ends a text, or the end of the body. There are no escaped quotes in a long text."""
    end = start
    while (end := _find(body, b'"', end, len(body))) >= 0:
        backslashes = 0
        while body[end - 1 - backslashes] == _BACKSLASH and backslashes <= most_with_quotes:
            backslashes += 1
        if backslashes % 2 == 0 and backslashes <= most_with_quotes:
            return end
        if end - start > most_with_quotes:
            raise TooMuchBesideError(f"more than {2 * most_with_quotes} bytes")
        end += 1
    return len(body)


def _find(body: bytes, what: bytes, start: int, end: int) -> int:
    """`bytes.find` in pieces."""
    for at in range(start, min(end, len(body)), _PIECE):
        found = body.find(what, at, min(at + _PIECE, end))
        if found >= 0:
            return found
    return -1


def pieces_of(text: memoryview) -> Iterator[bytes]:
    """What a JSON text says, a piece at a time. Raises ValueError where it is no JSON text.

    Args:
        text: what is written between its quotes.
    """
    start = 0
    while start < len(text):
        end = min(start + _PIECE, len(text))
        piece = bytes(text[start:end])
        if b"\\" in piece:
            if end < len(text):
                piece = piece[: _before_cut_escape(piece)]
            start += len(piece)
            yield json.loads(f'"{piece.decode("ascii")}"').encode("ascii")
        else:
            if any(each in piece for each in _LINE_ENDS):
                raise ValueError("a line ends in a text")
            start = end
            yield piece


def _before_cut_escape(piece: bytes) -> int:
    """Where a piece of a JSON text has to end so that no escape is cut in two; at least one of its bytes is kept."""
    cut = _CUT_ESCAPE.search(piece, len(piece) - _LONGEST_ESCAPE)
    if cut is None:
        return len(piece)
    before = piece[: cut.start()]
    is_escaped_itself = (len(before) - len(before.rstrip(b"\\"))) % 2 == 1
    return len(piece) if is_escaped_itself else cut.start()


def from_base64(pieces: Iterable[bytes]) -> bytes:
    """The bytes that a text in base64 stands for; whitespace does not count.

    Args:
        pieces: of the text.

    Raises:
        ValueError: it is no base64.
    """
    decoded, carried, padded = io.BytesIO(), b"", False
    for piece in pieces:
        text = carried + piece.translate(None, _WHITESPACE)
        if (padded and text) or text.endswith(b"==="):
            raise ValueError("the padding is not at the end")
        whole = len(text) // 4 * 4
        decoded.write(a2b_base64(text[:whole], strict_mode=True))
        padded, carried = text[:whole].endswith(b"="), text[whole:]
        if len(piece) > _PIECE // 2:
            time.sleep(_PAUSE_S)
    if carried:
        raise ValueError("it breaks off")
    return decoded.getvalue()
