"""A real server on a port that the system chose, on a fake backend."""

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from tests.support.gateway import Gateway

T = TypeVar("T")


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
async def gateway(workers: ThreadPoolExecutor) -> AsyncIterator[Gateway]:
    gateway = Gateway(workers)
    await gateway.start()
    yield gateway
    await gateway.stop()
