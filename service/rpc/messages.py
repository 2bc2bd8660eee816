"""Reading a call's messages without keeping them.

gRPC's iterator holds the last message until Python's collector of garbage comes by, because it and the generator in it
know each other. That can take seconds, and a message may have 20 MiB.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any


async def only_message(messages: AsyncIterator[Any]) -> Any:
    """The message of a call that has one; None if it ends without."""
    iterator = aiter(messages)
    try:
        return await anext(iterator, None)
    finally:
        await let_go(iterator)


async def let_go(messages: AsyncIterator[Any]) -> None:
    """Have an iterator of messages forget the last one; nothing more is read from it."""
    close = getattr(aiter(messages), "aclose", None)
    if close is not None:
        with suppress(RuntimeError):  # it is being read from elsewhere, and ends there
            await close()
