"""`python -m service` as a user starts it: a process of its own, real sockets, real TensorFlow."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support.backend import detection, spread_keypoints
from tests.support.images import image_bytes, picture
from tests.support.models import INPUT_SIZE
from tests.support.servables import write_card, write_detector_card, write_painting_model, write_steady_detector

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "service", *arguments]


def environment(**settings: object) -> dict[str, str]:
    """This process's environment with these settings of the service, and no others."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("HANDPOSE_")}
    ours = {"REST_PORT": 0, "GRPC_PORT": 0, **settings}
    return {**others, **{f"HANDPOSE_{name}": str(value) for name, value in ours.items()}}


def run(**settings: object) -> subprocess.CompletedProcess[str]:
    """Start a service that is expected to fail at once."""
    return subprocess.run(
        command(), env=environment(**settings), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"REST_PORT": "http"}, 2, "HANDPOSE_REST_PORT=http: "),
        ({"MAX_QUEUE": 0}, 2, "HANDPOSE_MAX_QUEUE=0: "),
        ({"MODEL_REPO": "no/such/folder"}, 1, "make models"),
        ({"LOG_LEVEL": "error", "REST_HOST": "192.0.2.1"}, 1, "HANDPOSE_REST_HOST"),
    ],
)
def test_failed_start_is_one_line_and_an_exit_code(
    tmp_path: Path, settings: dict[str, object], code: int, words: str
) -> None:
    write_card(tmp_path)
    write_detector_card(tmp_path)
    failed = run(**{"MODEL_REPO": tmp_path, **settings})
    assert failed.returncode == code, failed.stderr
    assert words in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert failed.stdout == ""


def test_port_in_use_is_one_line(tmp_path: Path) -> None:
    write_card(tmp_path)
    write_detector_card(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        failed = run(MODEL_REPO=tmp_path, REST_PORT=taken.getsockname()[1])
    assert failed.returncode == 1
    assert "the port is in use" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_help_explains_every_setting() -> None:
    text = subprocess.run(command("--help"), cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    for name in ("HANDPOSE_REST_PORT", "HANDPOSE_MODEL_REPO", "HANDPOSE_MAX_BODY_BYTES", "HANDPOSE_LOG_FORMAT"):
        assert re.search(rf"^  {name}\s+\S.*\(default .+\)$", text, re.MULTILINE), name


@contextmanager
def running(**settings: object) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A service that is ready, and what it printed until then."""
    with subprocess.Popen(
        command(),
        env=environment(**settings),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        at_the_latest = threading.Timer(120, process.kill)
        at_the_latest.start()
        try:
            assert process.stdout is not None
            printed = ""
            while "/v1/" not in printed and (line := process.stdout.readline()):
                printed += line
            assert "ready" in printed, process.communicate()[1]
            yield process, printed
        finally:
            at_the_latest.cancel()
            process.kill()


@pytest.mark.slow
def test_photo_goes_in_and_keypoints_come_out_of_both_models(tmp_path: Path) -> None:
    keypoints = spread_keypoints(INPUT_SIZE)
    write_painting_model(tmp_path, keypoints, "lightweight")
    write_painting_model(tmp_path, keypoints[::-1], "standard", version=3)
    write_steady_detector(tmp_path, detection())
    photo = image_bytes(picture(256, 128, (200, 170, 150)), "JPEG")
    with running(MODEL_REPO=tmp_path, REST_PROT=1) as (process, printed):
        url = re.findall(r"http://127\.0\.0\.1:\d+", printed)[0]
        with httpx.Client(base_url=url, timeout=30) as client:
            for variant, version, expected in (("lightweight", 1, keypoints), ("standard", 3, keypoints[::-1])):
                answer = client.post("/v1/hand-pose", content=photo, headers={"X-Model-Variant": variant})
                assert answer.headers["X-Model-Variant"] == f"{variant}@{version}"
                found = [(each["x"], each["y"]) for each in answer.json()["hands"][0]["keypoints"]]
                np.testing.assert_allclose(found, expected * 2 - (0, 64), atol=0.1)
            assert client.post("/v1/hand-pose", content=b"no image").status_code == 415
            assert client.get("/readyz").status_code == 200
        if shutil.which("curl") is not None:
            tried = subprocess.run(
                [*shlex.split(printed[printed.index("curl ") :].strip()), "--silent", "--fail"],
                cwd=ROOT,
                capture_output=True,
                timeout=30,
                check=False,
            )
            assert tried.returncode == 0, printed
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "HANDPOSE_REST_PROT is no setting" in errors
        assert "loading cpm_standard version 3" in errors
        assert "oneDNN" not in errors  # the start shows what the service does, not what TensorFlow is made of
