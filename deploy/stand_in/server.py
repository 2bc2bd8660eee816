"""This is no product: a stand-in for TensorFlow Serving, for tests and benchmarks only.

It speaks TensorFlow Serving's gRPC interface through the official messages (`tensorflow-serving-api`) and behaves, as
far as a client can tell, as the original does: versions, labels, the polled model folder and configuration file, the
configuration that is swapped whole, loads that are tried again, the port that opens only when every version is there,
the limit on threads, the bounded batch queue, the status code and message of each failure, as a real server of version
2.19.1 gave them. It does it in Python, in no hurry, and nothing that users start ever starts it.

    python -m deploy.stand_in.server --config models.config [--model tensorflow]

Two kinds of model: `numpy` (default) needs only version folders, answers a point that tells whose picture it was (see
`MarkedModel`) and starts in a fraction of a second; `tensorflow` runs the SavedModels that are in the folders.

Control: one JSON object a line on stdin, answered by one on stdout: {"set": {"slow_s": 0.2}} throws switches of
`Faults`, {"report": true} returns what has been counted and
runs, {"die": true} ends the process without a word. The first line
on stdout is {"port": N}. When stdin ends, so does the process, so that none outlives its test.
"""

import argparse
import importlib.util
import json
import math
import os
import queue
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import grpc
import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray

from service.inference.models import DETECTOR_NAME
from service.pose.detections import DETECTION_COLUMNS, DETECTIONS
from service.pose.heatmaps import STRIDE, encode
from service.pose.keypoints import CHANNEL_COUNT, KEYPOINT_COUNT
from service.pose.preprocessing import CROP_PADDING

Images = NDArray[np.uint8]
Maps = NDArray[np.float32]

SIGNATURE: Final = "serving_default"
_FOREVER_S: Final = 3600.0


class Refusal(Exception):  # noqa: N818 -- a status, as the model server would send it
    """A status other than OK, to be sent to the client."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


@dataclass
class Faults:
    """Switches; each is off at its default.

    Attributes:
        slow_s: every batch takes this much longer.
        loading_s: a version stays in LOADING for so long.
        threads_message: what a call is told that finds all threads at work; with the gRPC of the image, nothing.
        hang: "predict" or "all": these calls get no answer until the switch is thrown back.
        unavailable: every call is refused with UNAVAILABLE.
        labels_unknown: labels are not known yet.
        out_of_memory: running a batch fails as on a GPU without memory.
    """

    slow_s: float = 0.0
    loading_s: float = 0.0
    threads_message: str = ""
    hang: str = ""
    unavailable: bool = False
    labels_unknown: bool = False
    out_of_memory: bool = False


class Model(Protocol):
    """One loaded version."""

    def signatures(self) -> Any:
        """tensorflow.serving.SignatureDefMap."""
        ...

    def run(self, images: Images) -> Maps: ...


class MarkedModel:
    """Answers where the picture's colour says, so that a test can tell whose answer an answer is.

    Keypoints 0 to 19 lie at (red / 256, green / 256) of the input, by the mean colour of its middle. Keypoint 20 tells
    the version: (version % 8 + 1) tenths from the left, half-way down.

    A version of the hand detector answers with one upright right hand, of a size that has the other models see all of
    the picture.
    """

    def __init__(self, folder: Path) -> None:
        if (folder / "unloadable").exists():
            raise OSError(
                f"Could not find SavedModel .pb or .pbtxt at supplied export directory path: {folder}.\n\t Check that"
                " the directory exists and that you have the right permissions for accessing it."
            )
        self.version = int(folder.name)
        self._detects = folder.parent.name == DETECTOR_NAME

    def signatures(self) -> Any:
        from tensorflow_serving.apis import get_model_metadata_pb2

        found = get_model_metadata_pb2.SignatureDefMap()
        signature = found.signature_def[SIGNATURE]
        signature.method_name = "tensorflow/serving/predict"
        answers: tuple[str, tuple[int, ...]] = ("belief_maps", (-1, -1, -1, CHANNEL_COUNT))
        if self._detects:
            answers = ("detections", (-1, DETECTIONS, len(DETECTION_COLUMNS)))
        for tensors, dtype, (name, shape) in (
            (signature.inputs, 4, ("image", (-1, -1, -1, 3))),
            (signature.outputs, 1, answers),
        ):
            tensors[name].name = f"{name}:0"
            tensors[name].dtype = dtype
            for size in shape:
                tensors[name].tensor_shape.dim.add(size=size)
        return found

    def run(self, images: Images) -> Maps:
        if self._detects:
            side = images.shape[1]
            rows = np.zeros((len(images), DETECTIONS, len(DETECTION_COLUMNS)), np.float32)
            rows[:, 0] = (1.0, side / 2, side / 2, side / CROP_PADDING, 0.0, -1.0, 1.0)
            return rows
        height, width = images.shape[1:3]
        middle = images[:, height // 4 : -height // 4, width // 4 : -width // 4]
        colours = middle.mean(axis=(1, 2)) / 256
        points = np.repeat(colours[:, None, :2], KEYPOINT_COUNT, axis=1)
        points[:, -1] = ((self.version % 8 + 1) / 10, 0.5)
        cells = (width // STRIDE, height // STRIDE)
        labelled = np.ones(points.shape[:-1], np.bool_)
        return encode((points * cells).astype(np.float32), labelled, cells)


class SavedModel:
    """Runs a SavedModel with TensorFlow."""

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        self._folder = folder
        self._loaded = tf.saved_model.load(str(folder))
        self._function = self._loaded.signatures[SIGNATURE]
        self._constant = tf.constant

    def signatures(self) -> Any:
        from tensorflow.core.protobuf import saved_model_pb2
        from tensorflow_serving.apis import get_model_metadata_pb2

        saved = saved_model_pb2.SavedModel.FromString((self._folder / "saved_model.pb").read_bytes())
        found = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in saved.meta_graphs[0].signature_def.items():
            found.signature_def[name].CopyFrom(signature)
        return found

    def run(self, images: Images) -> Maps:
        (answer,) = self._function(image=self._constant(images)).values()
        maps: Maps = answer.numpy()
        return maps


# Batching


@dataclass(frozen=True, slots=True)
class BatchingParameters:
    """The three of TensorFlow Serving's that a client can notice, and the threads that run batches."""

    max_batch_size: int = 16
    max_enqueued_batches: int = 4
    num_batch_threads: int = 1


@dataclass
class _Task:
    images: Images
    expires: float
    done: "Future[Maps]" = field(default_factory=Future)


class BatchScheduler:
    """A bounded queue of tasks and the threads that run them in batches, for one version of one model."""

    def __init__(self, model: Model, parameters: BatchingParameters, faults: Faults) -> None:
        self._model = model
        self._parameters = parameters
        self._faults = faults
        self._tasks: queue.Queue[_Task | None] = queue.Queue()
        self._rows = 0
        self.running = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(parameters.num_batch_threads)]
        for thread in self._threads:
            thread.start()

    def run(self, images: Images, timeout_s: float) -> Maps:
        largest = self._parameters.max_batch_size
        if len(images) > largest:
            raise Refusal(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Task size {len(images)} is larger than maximum input batch size {largest}",
            )
        with self._lock:
            if self._rows + len(images) > largest * self._parameters.max_enqueued_batches:
                raise Refusal(
                    grpc.StatusCode.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; currently"
                    f" {self._parameters.max_enqueued_batches} batches enqueued and max_enqueued_batches is"
                    f" {self._parameters.max_enqueued_batches}",
                )
            self._rows += len(images)
        task = _Task(images, time.monotonic() + timeout_s)
        self._tasks.put(task)
        return task.done.result()

    def close(self) -> None:
        """Finish what is queued, then stop."""
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        held: _Task | None = None
        while True:
            first = held or self._tasks.get()
            held = None
            if first is None:
                return
            batch = [first]
            while held is None:
                try:
                    following = self._tasks.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._tasks.put(None)
                    break
                rows = sum(len(task.images) for task in batch)
                if rows + len(following.images) > self._parameters.max_batch_size:
                    held = following
                else:
                    batch.append(following)
            self._run(batch)

    def _run(self, batch: list[_Task]) -> None:
        with self._lock:
            self._rows -= sum(len(task.images) for task in batch)
            self.running += 1
        try:
            self._run_together(batch)
        finally:
            with self._lock:
                self.running -= 1

    @property
    def waiting(self) -> int:
        """Tasks that no batch has taken yet."""
        return self._tasks.qsize()

    def _run_together(self, batch: list[_Task]) -> None:
        try:
            # A batch is given up only when nobody in it waits any more.
            if all(time.monotonic() >= task.expires for task in batch):
                raise Refusal(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue"
                )
            if self._faults.out_of_memory:
                raise Refusal(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "2 root error(s) found.\n  (0) RESOURCE_EXHAUSTED: OOM when allocating tensor with"
                    " shape[8,64,256,256] and type float\n\t [[{{node StatefulPartitionedCall}}]]",
                )
            if len({task.images.shape[1:] for task in batch}) > 1:
                raise Refusal(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "Tensors with name 'image' from different tasks have different shapes and padding is turned off."
                    "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name have equal"
                    " dimensions starting with the first dim.",
                )
            if min(batch[0].images.shape[1:3]) < STRIDE:
                raise Refusal(
                    grpc.StatusCode.ABORTED, "Computed output size would be negative\n\t [[{{node pool/MaxPool}}]]"
                )
            time.sleep(self._faults.slow_s)
            maps = self._model.run(np.concatenate([task.images for task in batch]))
        except Exception as error:  # noqa: BLE001 -- every waiting call has to learn of it
            for task in batch:
                task.done.set_exception(error)
            return
        start = 0
        for task in batch:
            task.done.set_result(maps[start : start + len(task.images)])
            start += len(task.images)


# Models and versions


@dataclass(frozen=True, slots=True)
class LoadParameters:
    """How often and how soon a load that failed is tried again, and how often the folders are looked at."""

    max_num_load_retries: int = 5
    load_retry_interval_s: float = 60.0
    poll_s: float = 1.0


@dataclass
class _Version:
    state: int
    scheduler: BatchScheduler | None = None
    model: Model | None = None
    error: str = ""
    wanted: bool = True


class Manager:
    """Loads and unloads what the configuration and the folders say, and knows what each label stands for."""

    START, LOADING, AVAILABLE, UNLOADING, END = 10, 20, 30, 40, 50

    def __init__(
        self,
        config: Any,
        load: Callable[[Path], Model],
        *,
        parameters: BatchingParameters,
        faults: Faults,
        loading: LoadParameters,
    ) -> None:
        self._load = load
        self._parameters = parameters
        self._faults = faults
        self._loading = loading
        self._lock = threading.RLock()
        self._config = config
        self._versions: dict[str, dict[int, _Version]] = {}
        self._labels: dict[str, dict[str, int]] = {}
        self._assign_labels(config)

    def watch(self) -> NoReturn:
        """Poll the folders for ever."""
        while True:
            self.poll()
            time.sleep(self._loading.poll_s)

    def follow(self, config_file: Path, every_s: float) -> NoReturn:
        """Take over the configuration file again and again, whether or not it has changed."""
        from tensorflow_serving.config import model_server_config_pb2

        while True:
            time.sleep(every_s)
            try:
                self.reload(text_format.Parse(config_file.read_text(), model_server_config_pb2.ModelServerConfig()))
            except (Refusal, text_format.ParseError) as error:
                print(f"{config_file} is not taken over: {error}", file=sys.stderr, flush=True)

    def poll(self) -> None:
        """Load what is wanted and not there, then unload what is there and not wanted."""
        with self._lock:
            wanted = {model.name: set(_wanted(model)) for model in self._config.model_config_list.config}
            folders = {model.name: Path(model.base_path) for model in self._config.model_config_list.config}
        for name, versions in wanted.items():
            for version in sorted(versions):
                self._load_version(name, version, folders[name] / str(version))
        with self._lock:
            for name, known in self._versions.items():
                for version, each in known.items():
                    each.wanted = version in wanted.get(name, ())
                    if not each.wanted and each.state == self.AVAILABLE:
                        each.state = self.END
                        if each.scheduler is not None:
                            each.scheduler.close()
                        each.scheduler = each.model = None

    def _load_version(self, name: str, version: int, folder: Path) -> None:
        with self._lock:
            known = self._versions.setdefault(name, {})
            if version in known and (known[version].state != self.END or known[version].wanted):
                return  # a failed load is tried again only after a configuration without the version
            entry = known[version] = _Version(self.START)
        time.sleep(min(0.1, self._loading.poll_s / 10))
        entry.state = self.LOADING
        time.sleep(self._faults.loading_s)
        for retries_left in reversed(range(self._loading.max_num_load_retries + 1)):
            try:
                model = self._load(folder)
            except Exception as error:  # noqa: BLE001 -- the state says it, as in the original
                if retries_left and self._is_wanted(name, version):
                    time.sleep(self._loading.load_retry_interval_s)
                    continue
                with self._lock:
                    entry.state, entry.error = self.END, str(error)
                return
            with self._lock:
                entry.model = model
                entry.scheduler = BatchScheduler(model, self._parameters, self._faults)
                entry.state = self.AVAILABLE
            return

    def _is_wanted(self, name: str, version: int) -> bool:
        with self._lock:
            models = [each for each in self._config.model_config_list.config if each.name == name]
        return any(version in _wanted(model) for model in models)

    def why_not_up(self) -> str | None:
        """What keeps the port closed for good: a version that did not load, or a model without any; else None."""
        with self._lock:
            failed = [
                f"{{{{name: {name} version: {version}}} due to error: {each.error}}}"
                for name, known in self._versions.items()
                for version, each in known.items()
                if each.error
            ]
            empty = [
                model.name for model in self._config.model_config_list.config if not self._versions.get(model.name)
            ]
        if failed:
            return f"{len(failed)} servable(s) did not become available: {', '.join(failed)}"
        return f"no versions of {', '.join(empty)} were found" if empty else None

    def reload(self, config: Any) -> None:
        """Put another configuration in the place of the whole old one."""
        with self._lock:
            # In the original's order: the configuration is taken, then its labels are checked, before anything loads.
            before, self._config = self._config, config
            self._assign_labels(config)
            new = {each.name for each in config.model_config_list.config} - {
                each.name for each in before.model_config_list.config
            }
        if new:
            self.poll()

    def _assign_labels(self, config: Any) -> None:
        labels: dict[str, dict[str, int]] = {}
        for model in config.model_config_list.config:
            for label, version in model.version_labels.items():
                moved = self._labels.get(model.name, {}).get(label, version) != version
                found = self._versions.get(model.name, {}).get(version)
                if moved and (found is None or found.state != self.AVAILABLE):
                    raise Refusal(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        f"Request to assign label {label} to version {version} of model {model.name}, which is not"
                        " currently available for inference",
                    )
                labels.setdefault(model.name, {})[label] = version
        self._labels = labels

    def schedulers(self) -> list[BatchScheduler]:
        with self._lock:
            entries = [each for known in self._versions.values() for each in known.values()]
        return [each.scheduler for each in entries if each.scheduler is not None]

    def states(self, name: str) -> dict[int, _Version]:
        with self._lock:
            found = dict(self._versions.get(name, {}))
        if not found:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
        return found

    def find(self, spec: Any) -> tuple[int, Model, BatchScheduler]:
        """The version that a request means."""
        if not spec.name:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "Missing ModelSpec")
        with self._lock:
            choice = spec.WhichOneof("version_choice")
            versions = self._versions.get(spec.name, {})
            if choice == "version_label":
                version = self._version_of(spec.name, spec.version_label)
            elif choice == "version":
                version = spec.version.value
            else:
                running = [each for each, entry in versions.items() if entry.state == self.AVAILABLE]
                version = max(running, default=-1)
            entry = versions.get(version)
            if entry is None or entry.state != self.AVAILABLE or entry.model is None or entry.scheduler is None:
                request = f"Specific({spec.name}, {version})" if choice else f"Latest({spec.name})"
                raise Refusal(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {request}")
            return version, entry.model, entry.scheduler

    def _version_of(self, name: str, label: str) -> int:
        if self._faults.labels_unknown:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "Model labels does not init yet....")
        try:
            return self._labels[name][label]
        except KeyError:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}") from None


def _wanted(model: Any) -> list[int]:
    """The versions that a model's policy asks for, of those that are in its folder."""
    folder = Path(model.base_path)
    there = sorted(int(each.name) for each in folder.iterdir() if each.name.isdecimal()) if folder.is_dir() else []
    policy = model.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "specific":
            for version in set(policy.specific.versions) - set(there):
                print(f"W version {version} of servable {model.name} is not in {folder}", file=sys.stderr, flush=True)
            return [version for version in policy.specific.versions if version in there]
        case "all":
            return there
        case _:
            return there[-(policy.latest.num_versions or 1) :]


# The server


class Server:
    """The four calls, with the faults in front of them."""

    def __init__(self, manager: Manager, faults: Faults, *, max_threads: int = 256) -> None:
        self._manager = manager
        self._faults = faults
        self._free_threads = max_threads - 1  # one is the server's own
        self._lock = threading.Lock()
        self._released = threading.Condition()
        self.counts: dict[str, int] = {}
        self.traceparents: list[str] = []

    def set_faults(self, values: dict[str, Any]) -> None:
        known = {each.name for each in fields(Faults)}
        if not set(values) <= known:
            raise ValueError(f"the switches are {sorted(known)}")
        with self._released:
            for name, value in values.items():
                setattr(self._faults, name, value)
            self._released.notify_all()

    def handlers(self) -> Iterator[grpc.GenericRpcHandler]:
        from tensorflow_serving.apis import (
            get_model_metadata_pb2,
            get_model_status_pb2,
            model_management_pb2,
            predict_pb2,
        )

        for service, method, function, request in (
            ("PredictionService", "Predict", self._predict, predict_pb2.PredictRequest),
            (
                "PredictionService",
                "GetModelMetadata",
                self._metadata,
                get_model_metadata_pb2.GetModelMetadataRequest,
            ),
            ("ModelService", "GetModelStatus", self._status, get_model_status_pb2.GetModelStatusRequest),
            ("ModelService", "HandleReloadConfigRequest", self._reload, model_management_pb2.ReloadConfigRequest),
        ):
            handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
                self._guarded(method, function),
                request_deserializer=request.FromString,
                response_serializer=lambda reply: reply.SerializeToString(),
            )
            yield grpc.method_handlers_generic_handler(f"tensorflow.serving.{service}", {method: handler})

    def _guarded(
        self, method: str, function: Callable[[Any, grpc.ServicerContext], Any]
    ) -> Callable[[Any, grpc.ServicerContext], Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            self._count(method)
            try:
                with self._thread():
                    self._stumble(method, context)
                    return function(request, context)
            except Refusal as refusal:
                self._count(f"{method}:{refusal.code.name}")
                context.abort(refusal.code, refusal.details)

        return answer

    @contextmanager
    def _thread(self) -> Iterator[None]:
        """A call holds a thread until it is answered."""
        with self._lock:
            if not self._free_threads:
                raise Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, self._faults.threads_message)
            self._free_threads -= 1
        try:
            yield
        finally:
            with self._lock:
                self._free_threads += 1

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def _stumble(self, method: str, context: grpc.ServicerContext) -> None:
        def held() -> bool:
            return self._faults.hang == "all" or (self._faults.hang == "predict" and method == "Predict")

        with self._released:
            self._released.wait_for(lambda: not held() or not context.is_active(), timeout=60)
        if self._faults.unavailable:
            raise Refusal(grpc.StatusCode.UNAVAILABLE, "the stand-in was told to refuse")

    def _predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        from tensorflow_serving.apis import predict_pb2

        for key, value in context.invocation_metadata():
            if key == "traceparent" and isinstance(value, str):
                self.traceparents.append(value)
        version, model, scheduler = self._manager.find(request.model_spec)
        signature = _signature(model, request.model_spec.signature_name or SIGNATURE)
        images = _images(request, signature)
        unknown = set(request.output_filter) - set(signature.outputs)
        if unknown:
            raise _unknown_alias("output", min(unknown), signature.outputs)
        if not len(images):  # never returns, and holds its thread
            self._sleep_while_asked(context)
        maps = scheduler.run(images, context.time_remaining() or _FOREVER_S)
        reply = predict_pb2.PredictResponse()
        reply.model_spec.name = request.model_spec.name
        reply.model_spec.version.value = version
        reply.model_spec.signature_name = SIGNATURE
        (name,) = signature.outputs
        output = reply.outputs[name]
        output.dtype = 1
        for size in maps.shape:
            output.tensor_shape.dim.add(size=size)
        output.float_val.extend(maps.ravel().tolist())
        return reply

    def _sleep_while_asked(self, context: grpc.ServicerContext) -> None:
        with self._released:
            self._released.wait_for(lambda: not context.is_active(), timeout=60)

    def _metadata(self, request: Any, _context: grpc.ServicerContext) -> Any:
        from tensorflow_serving.apis import get_model_metadata_pb2

        if list(request.metadata_field) != ["signature_def"]:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "Metadata field is not supported")
        version, model, _ = self._manager.find(request.model_spec)
        reply = get_model_metadata_pb2.GetModelMetadataResponse()
        reply.model_spec.name = request.model_spec.name
        reply.model_spec.version.value = version
        reply.metadata["signature_def"].Pack(model.signatures())
        return reply

    def _status(self, request: Any, _context: grpc.ServicerContext) -> Any:
        from tensorflow_serving.apis import get_model_status_pb2

        spec = request.model_spec
        states = self._manager.states(spec.name)
        if spec.HasField("version"):
            if spec.version.value not in states:
                raise Refusal(
                    grpc.StatusCode.NOT_FOUND, f"Could not find version {spec.version.value} of model {spec.name}"
                )
            states = {spec.version.value: states[spec.version.value]}
        reply = get_model_status_pb2.GetModelStatusResponse()
        for version, entry in sorted(states.items(), reverse=True):
            status = reply.model_version_status.add(version=version, state=entry.state)
            if entry.error:
                status.status.error_code, status.status.error_message = 11, entry.error
        return reply

    def _reload(self, request: Any, _context: grpc.ServicerContext) -> Any:
        from tensorflow_serving.apis import model_management_pb2

        self._manager.reload(request.config)
        return model_management_pb2.ReloadConfigResponse()


def _signature(model: Model, name: str) -> Any:
    signatures = model.signatures().signature_def
    if name not in signatures:
        raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    return signatures[name]


def _images(request: Any, signature: Any) -> Images:
    """The images of a request, or the refusal that one of another kind gets."""
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    if unknown := set(request.inputs) - set(signature.inputs):
        raise _unknown_alias("input", min(unknown), signature.inputs)
    if missing := set(signature.inputs) - set(request.inputs):
        raise Refusal(
            invalid,
            f"Request inputs do not match required inputs for model `{request.model_spec.name}`. Send extra: {{}}."
            f" Missing but required: {{{','.join(sorted(missing))}}}.",
        )
    ((name, expected),) = signature.inputs.items()
    tensor = request.inputs[name]
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.dtype != expected.dtype:
        raise Refusal(invalid, f"Expects arg[0] to be uint8 but {tensor.dtype} is provided\n\t [[{{{{node {name}}}}}]]")
    if len(shape) != 4 or shape[-1] != expected.tensor_shape.dim[-1].size:
        raise Refusal(invalid, f"input depth must be divisible by filter depth: {shape}\n\t [[{{{{node conv}}}}]]")
    if len(tensor.tensor_content) != math.prod(shape):
        raise Refusal(invalid, f"Tensor proto has {len(tensor.tensor_content)} bytes, expected {math.prod(shape)}")
    return np.frombuffer(tensor.tensor_content, np.uint8).reshape(shape)


def _unknown_alias(what: str, name: str, known: Any) -> Refusal:
    return Refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        f"{what} tensor alias not found in signature: {name}. {what.title()}s expected to be in the set"
        f" {{{','.join(sorted(known))}}}.",
    )


def _leave_tensorflow_out() -> None:
    """Let `tensorflow.core...` (messages) be imported without `tensorflow` (seconds and hundreds of megabytes)."""
    found = importlib.util.find_spec("tensorflow")
    assert found is not None
    package = types.ModuleType("tensorflow")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["tensorflow"] = package


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _obey(server: Server, manager: Manager) -> None:
    """Answer control lines until there are no more."""
    for line in sys.stdin:
        order = json.loads(line)
        if order.get("die"):
            os._exit(137)
        if "set" in order:
            server.set_faults(order["set"])
        schedulers = manager.schedulers()
        _say(
            {
                "counts": dict(server.counts),
                "traceparents": list(server.traceparents),
                "running": sum(each.running for each in schedulers),
                "waiting": sum(each.waiting for each in schedulers),
            }
        )


def main() -> int:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(description="A stand-in for TensorFlow Serving, for tests only.")
    parser.add_argument("--config", type=Path, required=True, help="model server configuration, text format")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", choices=("numpy", "tensorflow"), default="numpy")
    parser.add_argument("--poll-s", type=float, default=1.0, help="seconds between looks at the folders")
    parser.add_argument("--config-poll-s", type=float, default=0.0, help="seconds between looks at --config; 0: none")
    parser.add_argument("--max-num-load-retries", type=int, default=5)
    parser.add_argument("--load-retry-interval-s", type=float, default=60.0)
    parser.add_argument("--grpc-max-threads", type=int, default=256)
    parser.add_argument("--max-connection-age-ms", type=int, default=2**31 - 1)
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--max-enqueued-batches", type=int, default=4)
    parser.add_argument("--num-batch-threads", type=int, default=1)
    parser.add_argument("--faults", type=json.loads, default={}, help="switches thrown from the start, as JSON")
    arguments = parser.parse_args()
    if arguments.model == "numpy":
        _leave_tensorflow_out()
    from tensorflow_serving.config import model_server_config_pb2

    config = text_format.Parse(arguments.config.read_text(), model_server_config_pb2.ModelServerConfig())
    faults = Faults(**arguments.faults)
    manager = Manager(
        config,
        MarkedModel if arguments.model == "numpy" else SavedModel,
        parameters=BatchingParameters(
            arguments.max_batch_size, arguments.max_enqueued_batches, arguments.num_batch_threads
        ),
        faults=faults,
        loading=LoadParameters(arguments.max_num_load_retries, arguments.load_retry_interval_s, arguments.poll_s),
    )
    manager.poll()
    if (reason := manager.why_not_up()) is not None:
        print(reason, file=sys.stderr)
        return 1
    server = Server(manager, faults, max_threads=arguments.grpc_max_threads)
    threads = ThreadPoolExecutor(max_workers=arguments.grpc_max_threads + 64)  # those that are refused need one, too
    rpc = grpc.server(
        threads,
        handlers=list(server.handlers()),
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.max_connection_age_ms", arguments.max_connection_age_ms),
        ],
    )
    port = rpc.add_insecure_port(f"127.0.0.1:{arguments.port}")
    rpc.start()
    threading.Thread(target=manager.watch, daemon=True).start()
    if arguments.config_poll_s:
        following = (arguments.config, arguments.config_poll_s)
        threading.Thread(target=manager.follow, args=following, daemon=True).start()
    _say({"port": port})
    _obey(server, manager)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
