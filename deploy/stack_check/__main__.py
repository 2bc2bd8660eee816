"""Tries the compose stack for real, from empty volumes, and ends with the proof: `python3 -m deploy.stack_check`.

It builds the images, brings the stack up without a GPU, asks it from outside, looks at what Prometheus has scraped,
stops the gateway under load, brings it up again, and tries the stack without a model server. What it starts it also
removes; the images stay. It uses ports, project and volumes of its own, so a stack that runs already is not disturbed.

It needs Docker and Compose (1.29 or 2) and nothing but Python's standard library. Images that cannot be pulled have
stand-ins: with `--stand-ins`, TensorFlow Serving is `deploy.stand_in.tensorflow_model_server` in an image, which runs
the same SavedModels, and Prometheus is Debian's. Grafana has none and is left out then. Everything else is what
docker-compose.yml says.
"""

import argparse
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from deploy.stack_check.load import Load

ROOT: Final = Path(__file__).resolve().parent.parent.parent
HERE: Final = "deploy/stack_check"
EXAMPLE: Final = ROOT / "service/rest/static/example.jpg"
PROJECT: Final = "handpose-stack-check"
PORTS: Final = {"REST_PORT": 18000, "GRPC_PORT": 18001, "PROMETHEUS_PORT": 19090, "GRAFANA_PORT": 13000}
TARGETS: Final = ("gateway:8000", "tensorflow-serving:8501")
SERIES: Final = {
    "requests answered": 'sum by (variant) (handpose_requests_total{code="ok"}) > 20',
    "p95 of a request, in s": (
        "histogram_quantile(0.95, sum by (variant, le) (handpose_request_duration_seconds_bucket)) > 0"
    ),
    "p95 of inference, in s": (
        'histogram_quantile(0.95, sum by (variant, le) (handpose_stage_duration_seconds_bucket{stage="inference"})) > 0'
    ),
    "p95 at the model server, in s": (
        "histogram_quantile(0.95, sum by (model_name, le) (:tensorflow:serving:request_latency_bucket)) / 1e6 > 0"
    ),
}
CLIENTS: Final = 4


class CheckError(Exception):
    """What was expected is not so. One line."""


class Check:
    """The steps, and what each has shown."""

    def __init__(self, *, device: str, stand_ins: bool, rounds_of_load: int) -> None:
        self._stand_ins = stand_ins
        self._rounds = rounds_of_load
        self._begun = time.monotonic()
        self._compose = [*_compose_command(), "--project-name", PROJECT]
        self._environment = {
            **os.environ,
            **{name: str(port) for name, port in PORTS.items()},
            "DEVICE": device,
            "GATEWAY_FOLDER": f"./{HERE}/gateway",
            # Where images cannot be pulled, builds often have no network of their own either.
            **({"BUILD_NETWORK": "host", "DOCKER_BUILDKIT": "0"} if stand_ins else {}),
            **({"TENSORFLOW_SERVING_IMAGE": "handpose-stand-in-tensorflow-serving"} if stand_ins else {}),
            **({"PROMETHEUS_IMAGE": "handpose-stand-in-prometheus"} if stand_ins else {}),
        }
        self.proof: list[str] = []

    # Steps

    def build(self) -> None:
        """The three images, and the stand-ins."""
        self._say("building the images gateway, embedded and trainer")
        self._run([*self._compose, "--profile", "embedded", "build", "models", "gateway", "embedded"], show=True)
        if self._stand_ins:
            self._say("building the stand-ins for TensorFlow Serving and Prometheus")
            for name, folders in (("tensorflow_serving", ["deploy/stand_in"]), ("prometheus", [])):
                image = f"handpose-stand-in-{name.replace('_', '-')}"
                dockerfile = f"{HERE}/{name}.Dockerfile"
                command = ["docker", "build", "--network", "host", "--quiet", "--tag", image, "--file", dockerfile, "-"]
                self._run(command, given=_archive([dockerfile, *folders]))

    def sizes(self) -> None:
        """How large each image is, and how much of that is not its base."""
        base = self._size(self._environment.get("PYTHON_IMAGE", "python:3.11-slim-bookworm"))
        for name in ("gateway", "embedded", "trainer"):
            size = self._size(f"handpose-{name}")
            self._prove(f"image {name:9} {size / 1e6:6.0f} MB, {(size - base) / 1e6:.0f} MB of it above the base image")
        absent = "import importlib.util as u; print([n for n in ('tensorflow', 'keras', 'trainer') if u.find_spec(n)])"
        found = self._output(["docker", "run", "--rm", "--entrypoint", "python", "handpose-gateway", "-c", absent])
        _expect(found == "[]", f"the gateway's image holds {found}")
        self._prove("the gateway's image holds neither TensorFlow nor Keras nor the trainer")

    def up(self) -> None:
        """The stack, from empty volumes."""
        begun = time.monotonic()
        services = ["models", "tensorflow-serving", "gateway", "prometheus"]
        self._say(f"starting {', '.join(services)}")
        self._run([*self._compose, "up", "-d", *([*services] if self._stand_ins else [])], show=True)
        for service in services[1:]:
            self._until_healthy(service)
        self._prove(f"up and healthy, from empty volumes, after {time.monotonic() - begun:.0f} s")
        container = self._container("gateway")
        user = self._output(["docker", "exec", container, "id", "-u"])
        writing = subprocess.run(["docker", "exec", container, "touch", "/app/x"], capture_output=True, check=False)
        _expect(user != "0" and writing.returncode != 0, "the gateway runs as root or can write to its root")
        self._prove(f"the gateway runs as user {user} on a root that it cannot write to")

    def versions(self) -> None:
        """What the command for managing versions says."""
        said = self._output([*self._compose, "run", "--rm", "manage", "list"])
        _expect(said.count("AVAILABLE") == 3 and said.count("stable") == 3, said)
        self._prove("`docker compose run --rm manage list`: " + " · ".join(_rows(said)))

    def keypoints(self) -> None:
        """An image, posted from outside, by both models."""
        for variant in ("lightweight", "standard"):
            answer, served = self._post(variant)
            (hand,) = answer["hands"]
            _expect(len(hand["keypoints"]) == 21, f"{variant} answers {len(hand['keypoints'])} keypoints")
            _expect(answer["model"]["variant"] == variant, f"{variant} was asked, {answer['model']} answered")
            wrist = hand["keypoints"][0]
            self._prove(
                f"X-Model-Variant: {variant:11} -> {len(hand['keypoints'])} keypoints, answered by {served};"
                f" wrist at ({wrist['x']:.0f}, {wrist['y']:.0f}), score {hand['score']:.2f}"
            )

    def metrics(self) -> None:
        """Both targets, the series of latencies, and everything that the dashboard asks for."""
        self._say("asking under load, for Prometheus to have something to scrape")
        load = self._load()
        load.start()
        try:
            self._until("Prometheus has both targets up", self._targets_up, patience_s=90)
            self._prove("Prometheus: up == 1 for " + " and ".join(TARGETS))
            for title, query in SERIES.items():
                self._until(f"Prometheus has {title}", partial(self._has, query), patience_s=90)
                self._prove(f"Prometheus: {title}: {_values(self._query(query))}")
            self._say("asking Prometheus what the dashboard asks")
            asking = [sys.executable, "deploy/grafana/check_queries.py", "--without", "GPU", "--wait-s", "180"]
            said = self._output([*asking, "--prometheus", f"http://127.0.0.1:{PORTS['PROMETHEUS_PORT']}"])
            self._prove(f"the dashboard's queries, without the GPU's row: {said.splitlines()[-1]}")
        finally:
            outcome = load.stop()
        _expect(not outcome.lost, f"lost: {outcome.lost}")

    def stop_under_load(self) -> None:
        """SIGTERM while requests are being answered."""
        for number in range(1, self._rounds + 1):
            self._say(f"stopping the gateway under load, {number} of {self._rounds}")
            container = self._container("gateway")
            load = self._load()
            load.start()
            self._until("every client has had answers", partial(load.answered, 2 * CLIENTS), patience_s=60)
            waiting = load.under_way()
            begun = time.monotonic()
            self._run([*self._compose, "stop", "gateway"])
            took = time.monotonic() - begun
            outcome = load.stop()
            status = self._inspect(container, "{{.State.ExitCode}}")
            _expect(status == "0", f"the gateway ended with status {status}")
            _expect(bool(waiting), "no request was under way when SIGTERM came")
            _expect(not outcome.lost, f"lost: {outcome.lost}")
            _expect(set(outcome.by_status()) <= {200, 503}, f"answers: {outcome.by_status()}")
            logged = {name: said for name, said in self._logged(container).items() if name.startswith(load.name)}
            _expect(logged == outcome.statuses, "the gateway's log and its clients tell of different answers")
            finished = sum(outcome.statuses.get(each) == 200 for each in waiting)
            self._prove(
                f"SIGTERM under load: {len(waiting)} requests under way, {finished} of them answered 200; of"
                f" {len(outcome.statuses)} sent in all {outcome.by_status()}, lost {len(outcome.lost)};"
                f" exit status {status} after {took:.1f} s"
            )
            self._run([*self._compose, "up", "-d", "--no-deps", "gateway"])
            self._until_healthy("gateway")
        self.keypoints()

    def embedded(self) -> None:
        """The models in the gateway's own process."""
        self.down()
        self._say("starting embedded alone")
        begun = time.monotonic()
        self._run([*self._compose, "up", "-d", "embedded"], show=True)
        self._until_healthy("embedded")
        self._prove(f"embedded alone: up and healthy after {time.monotonic() - begun:.0f} s")
        self.keypoints()

    def down(self) -> None:
        """Remove what was started, volumes too."""
        command = [
            *self._compose,
            "--profile",
            "embedded",
            "--profile",
            "manage",
            "down",
            "--volumes",
            "--timeout",
            "30",
        ]
        self._run(command)

    def show_failure(self) -> None:
        """What the containers said last."""
        subprocess.run([*self._compose, "ps"], cwd=ROOT, env=self._environment, check=False)
        subprocess.run([*self._compose, "logs", "--tail", "30"], cwd=ROOT, env=self._environment, check=False)

    # What the steps are made of

    def _load(self) -> Load:
        # Not through the published port: Docker's proxy takes connections even when nobody is behind it.
        template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return Load((self._inspect(self._container("gateway"), template), 8000), EXAMPLE.read_bytes(), CLIENTS)

    def _post(self, variant: str) -> tuple[dict[str, Any], str]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORTS['REST_PORT']}/v1/hand-pose",
            EXAMPLE.read_bytes(),
            {"Content-Type": "image/jpeg", "X-Model-Variant": variant},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer), answer.headers["X-Model-Variant"]

    def _prometheus(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{PORTS['PROMETHEUS_PORT']}/api/v1/{path}", timeout=10
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise CheckError(f"Prometheus refuses {path}: {error.read().decode()}") from error

    def _query(self, query: str) -> list[dict[str, Any]]:
        found = self._prometheus("query?" + urllib.parse.urlencode({"query": query}))["result"]
        return [each for each in found if not math.isnan(float(each["value"][1]))]

    def _has(self, query: str) -> bool:
        """Whether a query has a result for each of the two variants; where it also tells of the detector, one more."""
        return len(self._query(query)) >= 2

    def _targets_up(self) -> bool:
        active = self._prometheus("targets?state=active")["activeTargets"]
        up = {each["labels"]["instance"] for each in active if each["health"] == "up"}
        return set(TARGETS) <= up

    def _logged(self, container: str) -> dict[str, int]:
        """Status by request id, of every image that the gateway says it answered."""
        said = subprocess.run(["docker", "logs", container], capture_output=True, text=True, check=True)
        events = [json.loads(line) for line in (said.stdout + said.stderr).splitlines() if line.startswith("{")]
        return {
            event["request_id"]: event["status"] for event in events if event.get("message") == "POST /v1/hand-pose"
        }

    def _container(self, service: str) -> str:
        return self._output([*self._compose, "ps", "-q", service])

    def _inspect(self, what: str, template: str) -> str:
        return self._output(["docker", "inspect", "--format", template, what])

    def _size(self, image: str) -> int:
        return int(self._output(["docker", "image", "inspect", "--format", "{{.Size}}", image]))

    def _until_healthy(self, service: str) -> None:
        container = self._container(service)
        _expect(bool(container), f"{service} was not started")

        def healthy() -> bool:
            state = self._inspect(container, "{{.State.Status}} {{.State.Health.Status}}")
            _expect(state in {"running starting", "running healthy"}, f"{service} is {state}")
            return state.endswith("healthy")

        self._until(f"{service} is healthy", healthy, patience_s=300)

    def _until(self, what: str, holds: Callable[[], bool], patience_s: float) -> None:
        self._say(f"waiting until {what}")
        deadline = time.monotonic() + patience_s
        while not holds():
            _expect(time.monotonic() < deadline, f"not within {patience_s:g} s: {what}")
            time.sleep(0.5)

    def _run(self, command: Sequence[str], *, show: bool = False, given: bytes | None = None) -> None:
        output = None if show else subprocess.PIPE
        ended = subprocess.run(
            command, cwd=ROOT, env=self._environment, input=given, stdout=output, stderr=output, check=False
        )
        if ended.returncode:
            said = b"see above" if show else ended.stdout + ended.stderr
            raise CheckError(f"{' '.join(command)} ended with status {ended.returncode}: {said.decode()[-2000:]}")

    def _output(self, command: Sequence[str]) -> str:
        ended = subprocess.run(
            command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if ended.returncode:
            said = (ended.stdout + ended.stderr).decode()[-2000:]
            raise CheckError(f"{' '.join(command)} ended with status {ended.returncode}: {said}")
        return ended.stdout.decode().strip()

    def _say(self, line: str) -> None:
        print(f"[{time.monotonic() - self._begun:5.0f} s] {line}", flush=True)

    def _prove(self, line: str) -> None:
        self.proof.append(line)
        self._say(f"  ok: {line}")


def _compose_command() -> list[str]:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise CheckError("there is neither `docker compose` nor docker-compose")


def _archive(paths: Sequence[str]) -> bytes:
    """A build context of these files and folders of the project only."""
    buffer = io.BytesIO()
    # Docker looks at the first block only to see that this is an archive, and extended headers fill that.
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in paths:
            archive.add(ROOT / path, path, filter=lambda each: None if "__pycache__" in each.name else each)
    return buffer.getvalue()


def _rows(table: str) -> list[str]:
    return [" ".join(line.split()) for line in table.splitlines()[1:]]


def _values(found: Sequence[dict[str, Any]]) -> str:
    return ", ".join(
        f"{' '.join(each['metric'].values())} {float(each['value'][1]):.4g}".strip()
        for each in sorted(found, key=lambda each: sorted(each["metric"].items()))
    )


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise CheckError(otherwise)


def main() -> int:
    """Run every step; 0 if all of them hold."""
    parser = argparse.ArgumentParser(prog="python3 -m deploy.stack_check", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--device", choices=("cpu", "gpu"), default="cpu", help="which TensorFlow Serving (default: cpu)"
    )
    parser.add_argument("--stand-ins", action="store_true", help="stand-ins for images that cannot be pulled here")
    parser.add_argument("--skip-build", action="store_true", help="take the images that are there")
    parser.add_argument("--stops", type=int, default=3, help="how often to stop the gateway under load (default: 3)")
    parser.add_argument("--keep", action="store_true", help="end with the stack up and under no load, to look at")
    given = parser.parse_args()
    try:
        check = Check(device=given.device, stand_ins=given.stand_ins, rounds_of_load=given.stops)
        if not given.skip_build:
            check.build()
        check.sizes()
        check.down()
    except CheckError as error:
        sys.exit(f"FAILED: {error}")
    try:
        check.up()
        check.versions()
        check.keypoints()
        check.metrics()
        if given.keep:
            print(f"\nThe stack is up: http://127.0.0.1:{PORTS['REST_PORT']}; end it with:")
            print(f"  docker-compose --project-name {PROJECT} down --volumes")
            return 0
        check.stop_under_load()
        check.embedded()
    except (CheckError, OSError) as error:
        check.show_failure()
        print(f"\nFAILED: {error}")
        return 1
    finally:
        if not given.keep:
            check.down()
    print("\n" + "=" * 100)
    print(
        "The stack" + (", with stand-ins for TensorFlow Serving and Prometheus and without Grafana" * given.stand_ins)
    )
    for line in check.proof:
        print(f"  {line}")
    print("All of it holds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
