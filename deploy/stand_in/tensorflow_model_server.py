"""This is no product: `tensorflow_model_server` for the stack check, where the real image cannot be pulled.

It takes the command line of the real server, and no flag that we do not know the real one to have; reads the same three
files; runs the real SavedModels with TensorFlow behind the same gRPC calls (`deploy.stand_in.server`), and answers
over HTTP what Prometheus and a curious person ask. Its speed says nothing about TensorFlow Serving's.

    python -m deploy.stand_in.tensorflow_model_server --port=8500 --rest_api_port=8501 --model_config_file=models.config
"""

import argparse
import bisect
import json
import os
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import text_format

from deploy.stand_in.server import (
    BatchingParameters,
    Faults,
    Images,
    LoadParameters,
    Manager,
    Maps,
    Refusal,
    SavedModel,
    Server,
)

STATES: Final = {10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}

Continue = Callable[[grpc.HandlerCallDetails], "grpc.RpcMethodHandler[Any, Any] | None"]


def parser() -> argparse.ArgumentParser:
    """The flags that our deployments may use; the real server has many more."""
    made = argparse.ArgumentParser(prog="tensorflow_model_server", allow_abbrev=False)
    made.add_argument("--port", type=int, default=8500)
    made.add_argument("--rest_api_port", type=int, default=0)
    made.add_argument("--model_config_file", type=Path, required=True)
    made.add_argument("--model_config_file_poll_wait_seconds", type=int, default=0)
    made.add_argument("--allow_version_labels_for_unavailable_models", type=_flag, nargs="?", const=True, default=False)
    made.add_argument("--num_load_threads", type=int, default=1)
    made.add_argument("--max_num_load_retries", type=int, default=5)
    made.add_argument("--load_retry_interval_micros", type=int, default=60_000_000)
    made.add_argument("--grpc_max_threads", type=int, default=4 * (os.cpu_count() or 1))
    made.add_argument("--grpc_channel_arguments", default="")
    made.add_argument("--enable_batching", type=_flag, nargs="?", const=True, default=False)
    made.add_argument("--batching_parameters_file", type=Path)
    made.add_argument("--monitoring_config_file", type=Path)
    made.add_argument("--enable_profiler", type=_flag, nargs="?", const=True, default=True)
    made.add_argument("--per_process_gpu_memory_fraction", type=float, default=0.0)
    made.add_argument("--xla_gpu_compilation_enabled", type=_flag, nargs="?", const=True, default=False)
    return made


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise argparse.ArgumentTypeError("true or false")
    return text == "true"


def batching_parameters(text: str) -> BatchingParameters:
    """Read a batching parameters file; what a client cannot notice is only checked.

    Raises:
        ValueError: if a value is missing, or if the real server would refuse the sizes.
    """
    bare = re.sub(r"#.*", "", text)
    values = {name: int(value) for name, value in re.findall(r"(\w+)\s*\{\s*value\s*:\s*(\d+)\s*\}", bare)}
    sizes = [int(size) for size in re.findall(r"allowed_batch_sizes\s*:\s*(\d+)", bare)]
    if sizes and (sizes != sorted(sizes) or sizes[-1] != values["max_batch_size"]):
        raise ValueError(f"allowed_batch_sizes {sizes} must rise and end with max_batch_size")
    return BatchingParameters(values["max_batch_size"], values["max_enqueued_batches"], values["num_batch_threads"])


def monitoring_path(text: str) -> str:
    """The path of a monitoring configuration that is switched on. Raises ValueError for another one."""
    found = re.search(r'prometheus_config\s*\{\s*enable:\s*true\s+path:\s*"([^"]+)"\s*\}', text)
    if found is None:
        raise ValueError("the monitoring configuration does not switch Prometheus on")
    return found[1]


class Metrics:
    """What the real server exports, under its names and labels: times in microseconds, latencies of successes only."""

    _BOUNDS: Final = tuple(10 * 1.8**power for power in range(33))

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._buckets: dict[str, dict[str, list[int]]] = defaultdict(
            lambda: defaultdict(lambda: [0] * (len(self._BOUNDS) + 1))
        )
        self._sums: dict[tuple[str, str], float] = defaultdict(float)
        self._last_run_s: dict[str, float] = defaultdict(float)

    def version_loaded(self, folder: Path, status: str) -> None:
        with self._lock:
            self._count("cc:saved_model:load_attempt_count", f'model_path="{folder}",status="{status}"', 1)

    def batch_ran(self, model: str, seconds: float) -> None:
        with self._lock:
            self._last_run_s[model] = seconds
            self._count("core:graph_run_time_usecs", "", seconds * 1e6)
            self._observe("serving:runtime_latency", f'model_name="{model}",API="Predict",runtime="TF1"', seconds)

    def request_ended(self, model: str, status: str, seconds: float) -> None:
        with self._lock:
            self._count("serving:request_count", f'model_name="{model}",status="{status}"', 1)
            if status == "OK":
                self._observe(
                    "serving:request_latency", f'model_name="{model}",API="predict",entrypoint="GRPC"', seconds
                )
                # Roughly: with two batch threads, the run that ended last may be another's.
                waited = max(0.0, seconds - self._last_run_s[model])
                self._observe("serving:batching_session:queuing_latency", 'thread_pool_name=""', waited)

    def _count(self, name: str, labels: str, more: float) -> None:
        self._counters[name][labels] += more

    def _observe(self, name: str, labels: str, seconds: float) -> None:
        self._buckets[name][labels][bisect.bisect_left(self._BOUNDS, seconds * 1e6)] += 1
        self._sums[name, labels] += seconds * 1e6

    def exposition(self) -> str:
        """In Prometheus' text format."""
        lines = []
        with self._lock:
            for name, counted in sorted(self._counters.items()):
                lines.append(f"# TYPE :tensorflow:{name} counter")
                lines += [f":tensorflow:{name}{{{labels}}} {value:g}" for labels, value in sorted(counted.items())]
            for name, observed in sorted(self._buckets.items()):
                lines.append(f"# TYPE :tensorflow:{name} histogram")
                for labels, buckets in sorted(observed.items()):
                    below = 0
                    for bound, count in zip([*map(str, self._BOUNDS), "+Inf"], buckets, strict=True):
                        below += count
                        lines.append(f':tensorflow:{name}_bucket{{{labels},le="{bound}"}} {below}')
                    lines.append(f":tensorflow:{name}_sum{{{labels}}} {self._sums[name, labels]:g}")
                    lines.append(f":tensorflow:{name}_count{{{labels}}} {below}")
        return "\n".join(lines) + "\n"


class MeasuredModel:
    """Implements `deploy.stand_in.server.Model` by a SavedModel, and tells how long it loads and runs."""

    def __init__(self, folder: Path, metrics: Metrics) -> None:
        self._name = folder.parent.name
        self._metrics = metrics
        if not (folder / "saved_model.pb").exists():  # which is not counted at all
            raise OSError(f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {folder}")
        try:
            self._model = SavedModel(folder)
        except Exception:
            metrics.version_loaded(folder, "fail")
            raise
        metrics.version_loaded(folder, "success")
        _read_warm_up(folder / "assets.extra" / "tf_serving_warmup_requests")

    def signatures(self) -> Any:
        return self._model.signatures()

    def run(self, images: Images) -> Maps:
        begun = time.monotonic()
        maps = self._model.run(images)
        self._metrics.batch_ran(self._name, time.monotonic() - begun)
        return maps


def _read_warm_up(path: Path) -> None:
    """Read the warm-up records. Raises tensorflow.errors.DataLossError if they are broken."""
    if path.exists():
        import tensorflow as tf

        for _ in tf.data.TFRecordDataset(str(path)):
            pass


class Measuring(grpc.ServerInterceptor):
    """Times every Predict."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def intercept_service(
        self, continuation: Continue, details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = continuation(details)
        if handler is None or not details.method.endswith("/Predict") or (answer := handler.unary_unary) is None:
            return handler

        def measured(request: Any, context: grpc.ServicerContext) -> Any:
            begun = time.monotonic()
            status = "OK"
            try:
                return answer(request, context)
            except BaseException:
                code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]  # missing in the stubs
                status = "UNKNOWN" if code is None else code.name
                raise
            finally:
                self._metrics.request_ended(request.model_spec.name, status, time.monotonic() - begun)

        return grpc.unary_unary_rpc_method_handler(
            measured,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def http_server(port: int, pages: Mapping[str, Callable[[], str]], manager: Manager) -> ThreadingHTTPServer:
    """Answers the pages, and /v1/models/NAME with the states of its versions."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = HTTPStatus.NOT_FOUND, "{}"
            if self.path in pages:
                status, text = HTTPStatus.OK, pages[self.path]()
            elif (name := self.path.removeprefix("/v1/models/")) != self.path:
                try:
                    states = manager.states(name)
                except Refusal as refusal:
                    text = json.dumps({"error": refusal.details})
                else:
                    each = [
                        {"version": str(version), "state": STATES[entry.state]} for version, entry in states.items()
                    ]
                    status, text = HTTPStatus.OK, json.dumps({"model_version_status": each})
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if self.path in pages else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A line for every scrape would hide what matters."""

    return ThreadingHTTPServer(("0.0.0.0", port), Handler)


def _config(text: str) -> Any:
    from tensorflow_serving.config import model_server_config_pb2

    return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())


def main() -> None:
    """Serve until the process is ended."""
    given = parser().parse_args()
    print("This is a stand-in for TensorFlow Serving, for checks only.", file=sys.stderr, flush=True)
    parameters = BatchingParameters()
    if given.enable_batching and given.batching_parameters_file is not None:
        parameters = batching_parameters(given.batching_parameters_file.read_text())
    faults, metrics = Faults(), Metrics()
    manager = Manager(
        _config(given.model_config_file.read_text()),
        lambda folder: MeasuredModel(folder, metrics),
        parameters=parameters,
        faults=faults,
        loading=LoadParameters(given.max_num_load_retries, given.load_retry_interval_micros / 1e6),
    )
    manager.poll()
    if (reason := manager.why_not_up()) is not None:
        sys.exit(reason)
    if given.rest_api_port:
        pages = {}
        if given.monitoring_config_file is not None:
            pages[monitoring_path(given.monitoring_config_file.read_text())] = metrics.exposition
        threading.Thread(target=http_server(given.rest_api_port, pages, manager).serve_forever, daemon=True).start()
    rpc = grpc.server(
        ThreadPoolExecutor(max_workers=given.grpc_max_threads + 64),
        handlers=list(Server(manager, faults, max_threads=given.grpc_max_threads).handlers()),
        interceptors=[Measuring(metrics)],
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    # Last, as the original does: who can connect can ask.
    rpc.add_insecure_port(f"0.0.0.0:{given.port}")
    rpc.start()
    if given.model_config_file_poll_wait_seconds:
        threading.Thread(
            target=manager.follow,
            args=(given.model_config_file, given.model_config_file_poll_wait_seconds),
            daemon=True,
        ).start()
    manager.watch()


if __name__ == "__main__":
    main()
