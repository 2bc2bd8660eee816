"""Keys, TLS and the admin listener as the settings put them together; and what is said of it at the start."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import trustme

from service.access.key_file import add_key, remove_key
from service.bootstrap import Addresses, StartError, serve
from service.settings import Settings
from tests.service.test_bootstrap import GatedModels
from tests.support.certificates import TlsFolder
from tests.support.images import image_bytes
from tests.support.servables import write_card, write_detector_card
from tests.support.waiting import until


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_card(tmp_path / "models", "lightweight")
    write_detector_card(tmp_path / "models")
    return tmp_path / "models"


def settings(repository: Path, **others: object) -> Settings:
    ours = {"REST_PORT": 0, "GRPC_PORT": 0, "MODEL_REPO": repository, **others}
    return Settings.from_environment({f"HANDPOSE_{name}": str(value) for name, value in ours.items()})


@asynccontextmanager
async def running(repository: Path, **others: object) -> AsyncIterator[Addresses]:
    models, ready = GatedModels(), asyncio.get_running_loop().create_future()
    models.gate.set()
    serving = asyncio.ensure_future(
        serve(settings(repository, **others), on_ready=ready.set_result, open_servable=models)
    )
    await asyncio.wait((ready, serving), return_when=asyncio.FIRST_COMPLETED)
    try:
        yield ready.result()
    finally:
        if not serving.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await serving


async def test_service_asks_for_keys_over_tls_and_follows_both_files(repository: Path, tmp_path: Path) -> None:
    keys, folder, authority, other = tmp_path / "keys.yaml", TlsFolder(tmp_path), trustme.CA(), trustme.CA()
    folder.write_server(authority)
    key = add_key(keys, "kiosk", now=datetime.now(UTC))
    files = {"API_KEYS_FILE": keys, "TLS_CERT_FILE": folder.cert, "TLS_KEY_FILE": folder.key}
    async with running(repository, ADMIN_PORT=0, **files) as addresses:
        assert (addresses.tls, addresses.keys) == (True, True)
        url = f"https://127.0.0.1:{addresses.rest[1]}"

        async def status(shown: str, trusted: trustme.CA = authority) -> int | str:
            context = folder.trusting(trusted).context()
            async with httpx.AsyncClient(verify=context, headers={"Authorization": f"Bearer {shown}"}) as client:
                try:
                    return (await client.post(f"{url}/v1/hand-pose", content=image_bytes())).status_code
                except httpx.ConnectError as error:
                    return str(error)

        assert await status(key) == 200
        new = add_key(keys, "other", now=datetime.now(UTC))
        remove_key(keys, "kiosk")

        async def is_followed() -> bool:
            return await status(new) == 200

        await until(is_followed)
        assert await status(key) == 401
        folder.write_server(other)

        async def is_shown() -> bool:
            return await status(new, other) == 200

        await until(is_shown)
        assert "CERTIFICATE_VERIFY_FAILED" in str(await status(new))
        assert addresses.admin is not None
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{addresses.admin[1]}") as admin:
            metrics = (await admin.get("/metrics")).text
            assert 'code="unauthenticated"' in metrics
            assert key not in metrics
            assert (await admin.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"API_KEYS_FILE": "no/keys.yaml"}, "no/keys.yaml: cannot be read: No such file"),
        ({"TLS_CERT_FILE": "no/cert.pem", "TLS_KEY_FILE": "no/key.pem"}, "no/cert.pem: cannot be read: No such file"),
    ],
)
async def test_missing_file_ends_the_start(repository: Path, others: dict[str, str], words: str) -> None:
    with pytest.raises(StartError, match=words):
        await serve(settings(repository, **others), on_ready=lambda _: None, open_servable=GatedModels())


async def test_open_service_that_others_can_reach_is_a_warning(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with running(repository):
            pass
        assert not [each for each in caplog.messages if "HANDPOSE_API_KEYS_FILE" in each]
        async with running(repository, REST_HOST="0.0.0.0"):
            pass
    assert [each for each in caplog.messages if "HANDPOSE_API_KEYS_FILE" in each]


async def test_keys_in_plain_text_are_a_warning(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_key(tmp_path / "keys.yaml", "kiosk", now=datetime.now(UTC))
    with caplog.at_level(logging.WARNING):
        async with running(repository, REST_HOST="0.0.0.0", API_KEYS_FILE=tmp_path / "keys.yaml"):
            pass
    assert [each for each in caplog.messages if "HANDPOSE_TLS_CERT_FILE" in each]
