"""What the tests of the client and of the command line share."""

from collections.abc import Iterator

import pytest

from tests.support.running_service import Service


@pytest.fixture
def service() -> Iterator[Service]:
    """A running gateway on a fake backend."""
    service = Service()
    yield service
    service.close()
