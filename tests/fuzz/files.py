"""What operators write: routing rules, model server configurations, model cards and settings.

The first byte says which. Each parser may refuse with its own error, one line long, and with nothing else.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from service.backends.repository import CARD_NAME, ServableError, newest_servables
from service.backends.tensorflow_serving.config_file import ManagementError, read_config
from service.files import FileError
from service.routing_file import parse_rules
from service.settings import PREFIX, Settings, SettingsError
from tests.fuzz.reading import Reader
from tests.fuzz.targets import Check, FoundError

KINDS: Final[Sequence[str]] = ("routing", "models_config", "card", "settings")
"""What the first byte of an input says it is."""


@contextmanager
def opened() -> Iterator[Check]:
    """A check of all parsers; it writes to a folder of its own where a parser reads a file."""
    with tempfile.TemporaryDirectory() as folder:
        parsers = _parsers(Path(folder))

        def check(data: bytes) -> None:
            reader = Reader(data)
            parsers[reader.choice(KINDS)](reader.rest())

        yield check


def _parsers(folder: Path) -> dict[str, Callable[[bytes], None]]:
    config = folder / "models.config"
    card = folder / "repository" / "cpm_lightweight" / "1" / CARD_NAME
    card.parent.mkdir(parents=True)

    def routing(data: bytes) -> None:
        try:
            parse_rules(data)
        except FileError as error:
            _tells(str(error))

    def models_config(data: bytes) -> None:
        config.write_bytes(data)
        try:
            read_config(config)
        except ManagementError as error:
            _tells(str(error))

    def model_card(data: bytes) -> None:
        card.write_bytes(data)
        try:
            newest_servables(folder / "repository", 1)
        except ServableError as error:
            _tells(str(error))

    return {"routing": routing, "models_config": models_config, "card": model_card, "settings": settings}


def settings(data: bytes) -> None:
    """Lines NAME=VALUE, as an environment."""
    lines = [line.partition("=") for line in data.decode("utf-8", "surrogateescape").splitlines()]
    environment = {f"{PREFIX}{name}": value.replace("\0", "") for name, _, value in lines}
    try:
        read = Settings.from_environment(environment)
    except SettingsError as error:
        _tells(str(error))
        return
    for parts in (read.batching, read.rest, read.rpc, read.rpc_server, read.streams):
        parts()
    read.default_reference()


def _tells(message: str) -> None:
    if not message:
        raise FoundError("refused without a reason")
