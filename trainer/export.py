"""Writes trained weights as servables: SavedModel, model card, warm-up records, in `<name>/<version>/`.

A version is written beside its place, loaded again and compared with the Keras network, and only then
renamed, so a model server that polls the repository sees it whole or not at all. Existing versions are
never touched. Training and weights files are not handled here; see `trainer.weights`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.pose.detections import DETECTION_COLUMNS, DETECTIONS
from service.pose.heatmaps import STRIDE
from service.pose.keypoints import CHANNEL_COUNT, KEYPOINT_NAMES
from trainer import model_card, weights
from trainer.errors import RefusedError, TrainerError
from trainer.golden import Predict, golden_answers, golden_pictures, steady_hands, steady_keypoints
from trainer.model_card import AnyCard, CardError, DetectorCard, ModelCard, Signature, TensorInfo

if TYPE_CHECKING:
    import keras

    from trainer.weights import StoredWeights

DEFAULT_REPOSITORY = Path("model_repo")
WARM_UP_BATCH_SIZES = (1, 2, 4, 8, 16)
"""The batch sizes a model server is allowed to form; the gateway's batching uses the same."""
TOLERANCE = 1e-4
"""Largest difference allowed between servable and Keras network, relative to the largest value."""

SIGNATURE = Signature(
    name="serving_default",
    inputs={"image": TensorInfo("uint8", (-1, -1, -1, 3))},
    outputs={"belief_maps": TensorInfo("float32", (-1, -1, -1, CHANNEL_COUNT))},
)

DETECTOR_SIGNATURE = Signature(
    name=SIGNATURE.name,
    inputs=SIGNATURE.inputs,
    outputs={"detections": TensorInfo("float32", (-1, DETECTIONS, len(DETECTION_COLUMNS)))},
)


def signature_of(variant: str) -> Signature:
    """What the servable of these weights takes and answers."""
    return DETECTOR_SIGNATURE if variant == weights.DETECTOR else SIGNATURE


def servable_name(variant: str) -> str:
    """Name of the servable of these weights, and of its folder in the model repository."""
    return variant if variant == weights.DETECTOR else f"cpm_{variant}"


def existing_versions(servable_folder: Path) -> list[int]:
    """The version numbers in a servable's folder, ascending; other names are no versions."""
    if not servable_folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in servable_folder.iterdir() if entry.name.isdecimal() and entry.is_dir())


def find_exported(servable_folder: Path, weights_sha256: str, input_size: int) -> int | None:
    """The newest version that was exported from these weights for this input size, if there is one."""
    for version in reversed(existing_versions(servable_folder)):
        try:
            card = model_card.read(servable_folder / str(version))
        except CardError:
            continue  # a version of other origin: it cannot be the one looked for
        if (card.weights_sha256, card.input_size) == (weights_sha256, input_size):
            return version
    return None


def choose_version(servable_folder: Path, version: int | None) -> int:
    """`version`, or the next free number for None; RefusedError if it exists or is no positive number."""
    if version is None:
        return max(existing_versions(servable_folder), default=0) + 1
    if version < 1:
        raise RefusedError(f"version {version} is not a positive number")
    if (servable_folder / str(version)).exists():
        raise RefusedError(
            f"{servable_folder / str(version)} exists; versions are never overwritten: "
            "choose another --version, or leave it out for the next free one"
        )
    return version


def served_size(trained_size: int, input_size: int | None, step: int = STRIDE) -> int:
    """`input_size`, or for None the size the weights were trained at; RefusedError unless a multiple of `step`."""
    size = trained_size if input_size is None else input_size
    if size < step or size % step:
        raise RefusedError(f"input size {size} is not a positive multiple of {step}")
    return size


def export(
    stored: StoredWeights,
    repository: Path,
    *,
    version: int | None = None,
    input_size: int | None = None,
    pictures: Sequence[Path] | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Writes one servable from trained weights and returns its version folder.

    `input_size` (pixels, default: what the weights were trained at) is what the card tells servers to use
    and what the warm-up records hold; the graph itself accepts any multiple of 8, the detector's of 32. The
    card keeps the answers to `pictures` (default: `golden_pictures`) as far as they are steady. `report`
    receives a line for each step. Raises RefusedError for a version that exists or an unfit size, TrainerError if the
    written servable does not compute what the Keras network computes.
    """
    size = served_size(stored.info.input_size, input_size, weights.input_step(stored.variant))
    folder = repository / servable_name(stored.variant)
    version = choose_version(folder, version)
    network = weights.to_model(stored)
    is_detector = stored.variant == weights.DETECTOR

    with appearing_whole(folder / str(version)) as unfinished:
        report("writing the SavedModel")
        _write_saved_model(network, unfinished, signature_of(stored.variant))
        report("writing the warm-up records")
        _write_warm_up_records(unfinished, servable_name(stored.variant), size)
        report("loading the servable and comparing it with the network")
        predict = load_servable(unfinished, signature_of(stored.variant))
        if is_detector:
            _compare_detections(predict, network)
        else:
            _compare(predict, network)
        pictures = golden_pictures() if pictures is None else pictures
        golden = golden_answers(predict, pictures, size, steady_hands if is_detector else steady_keypoints)
        kept = len(golden["images"]) if golden else 0
        report(f"keeping golden answers to {kept} of {len(pictures)} pictures, those whose answer is steady")
        model_card.write(_card(stored, version, size, unfinished, network, golden), unfinished)
    return folder / str(version)


@contextmanager
def appearing_whole(version_folder: Path) -> Iterator[Path]:
    """Gives a folder to fill, renamed to `version_folder` at the end, or removed if the block fails."""
    version_folder.parent.mkdir(parents=True, exist_ok=True)
    # Not numeric, so no model server takes it for a version. Not from tempfile, whose folders only their
    # owner may read: a model server often runs as another user.
    unfinished = version_folder.with_name(f".export-{version_folder.name}-{uuid.uuid4().hex[:8]}")
    unfinished.mkdir()
    try:
        yield unfinished
        if version_folder.exists():
            raise RefusedError(f"{version_folder} has appeared meanwhile; versions are never overwritten")
        unfinished.rename(version_folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_saved_model(network: keras.Model, folder: Path, signature_form: Signature) -> None:
    import tensorflow as tf

    (input_name,), (output_name,) = signature_form.inputs, signature_form.outputs

    def serve(image: Any) -> dict[str, Any]:
        scaled = tf.cast(image, tf.float32) / 255.0 - 0.5
        return {output_name: _answer(network, scaled)}

    specification = tf.TensorSpec([None, None, None, 3], tf.uint8, name=input_name)
    signature = tf.function(serve, input_signature=[specification], autograph=False).get_concrete_function()
    # A bare module rather than the Keras model: the SavedModel then holds the weights, named by layer, and
    # no more.
    module = tf.Module()
    module.weights = {
        f"{layer.name}/{weight.name}": weight.value for layer in network.layers for weight in layer.weights
    }
    tf.saved_model.save(module, str(folder), signatures={signature_form.name: signature})


def _answer(network: keras.Model, scaled: Any) -> Any:
    """What is served of pictures as the network takes them."""
    from trainer.models.detector import decode, is_detector

    outputs = network(scaled, training=False)
    return decode(outputs) if is_detector(network) else outputs


def _write_warm_up_records(version_folder: Path, name: str, size: int) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    extra = version_folder / "assets.extra"
    extra.mkdir()
    image = _picture(size)
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for batch_size in WARM_UP_BATCH_SIZES:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = name
            request.model_spec.signature_name = SIGNATURE.name
            request.inputs["image"].CopyFrom(tf.make_tensor_proto(np.stack([image] * batch_size)))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def _picture(size: int) -> Any:
    """A colour gradient with noise, uint8 [size, size, 3]: not constant, and the same every time."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    gradient = np.stack([rows, columns, 1.0 - (rows + columns) / 2.0], axis=-1) * 200.0
    noise = np.random.default_rng(0).uniform(0.0, 55.0, gradient.shape)
    return (gradient + noise).astype(np.uint8)


def load_servable(version_folder: Path, signature_form: Signature) -> Predict:
    """The written servable, as a function of uint8 images."""
    import tensorflow as tf

    servable = tf.saved_model.load(str(version_folder))
    signature = servable.signatures[signature_form.name]
    (output_name,) = signature_form.outputs

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert servable  # keeps the variables alive
        return np.asarray(signature(image=tf.constant(images))[output_name])

    return predict


def _compare(predict: Predict, network: Any) -> None:
    """Runs the written servable on noise and raises TrainerError unless it agrees with the Keras network."""
    # Two sizes, neither square: what is compared includes that batch, height and width are free.
    for shape in ((2, 64, 96, 3), (1, 72, 40, 3)):
        images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        expected = np.asarray(_answer(network, images.astype(np.float32) / 255.0 - 0.5))
        actual = predict(images)
        if actual.shape != expected.shape:
            raise TrainerError(f"the servable answers with shape {actual.shape}, expected {expected.shape}")
        difference = float(np.abs(actual - expected).max())
        scale = float(np.abs(expected).max())
        if not difference <= TOLERANCE * scale:
            raise TrainerError(
                f"the servable differs from the Keras network by {difference:.3g}, "
                f"more than {TOLERANCE} of the largest belief {scale:.3g}"
            )


def _compare_detections(predict: Predict, network: Any) -> None:
    """`_compare` for the detector. Rows of nearly the same score may be in another order: of them, only it counts."""
    for shape in ((2, 96, 160, 3), (1, 128, 64, 3)):
        images = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        expected = np.asarray(_answer(network, images.astype(np.float32) / 255.0 - 0.5))
        actual = predict(images)
        if actual.shape != expected.shape:
            raise TrainerError(f"the servable answers with shape {actual.shape}, expected {expected.shape}")
        scores = expected[..., DETECTION_COLUMNS.index("score")]
        gaps = -np.diff(scores, axis=1, append=0.0)
        alone = np.minimum(gaps, np.roll(gaps, 1, axis=1)) > TOLERANCE * scores.max()
        alone[:, 0] = gaps[:, 0] > TOLERANCE * scores.max()
        alone[:, -1] = False  # the next one is not known
        for column, name in enumerate(DETECTION_COLUMNS):
            compared = np.ones_like(alone) if name == "score" else alone
            difference = np.abs(actual - expected)[..., column][compared].max(initial=0.0)
            scale = np.abs(expected[..., column]).max()
            if not difference <= TOLERANCE * scale:
                raise TrainerError(
                    f"the servable differs from the Keras network by {difference:.3g} in {name}, "
                    f"more than {TOLERANCE} of the largest {scale:.3g}"
                )


def _card(
    stored: StoredWeights, version: int, size: int, version_folder: Path, network: Any, golden: dict[str, Any] | None
) -> AnyCard:
    from trainer.profile import count_servable

    count = count_servable(version_folder, size)
    if count.parameters != network.count_params():
        raise TrainerError(
            f"the servable holds {count.parameters} parameters, the network has {network.count_params()}"
        )
    info = stored.info
    created = datetime.now(UTC).isoformat(timespec="seconds")
    provenance = {"trained": info.created, **info.provenance}
    if info.target_sigma_in_cells is None:
        return DetectorCard(
            name=servable_name(stored.variant),
            version=version,
            created=created,
            columns=DETECTION_COLUMNS,
            detections=DETECTIONS,
            input_size=size,
            signature=DETECTOR_SIGNATURE,
            parameters=count.parameters,
            macs=count.macs,
            weights_sha256=stored.sha256,
            provenance=provenance,
            metrics=info.metrics,
            golden=golden,
        )
    return ModelCard(
        name=servable_name(stored.variant),
        variant=stored.variant,
        version=version,
        created=created,
        keypoints=KEYPOINT_NAMES,
        channels=CHANNEL_COUNT,
        input_size=size,
        stride=STRIDE,
        target_sigma_in_cells=info.target_sigma_in_cells,
        crop_padding=info.crop_padding,
        signature=SIGNATURE,
        parameters=count.parameters,
        paper_flops=count.paper_flops,
        macs=count.macs,
        weights_sha256=stored.sha256,
        provenance=provenance,
        metrics=info.metrics,
        golden=golden,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m trainer export`."""
    parser.add_argument(
        "--variant", choices=(*weights.VARIANTS, "all"), default="all", help="what to export (default: %(default)s)"
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="the .npz to export, for a single --variant (default: trainer/weights/<variant>.npz)",
    )
    parser.add_argument(
        "--model-repo",
        type=Path,
        default=DEFAULT_REPOSITORY,
        metavar="DIR",
        help="model repository to write into (default: %(default)s)",
    )
    parser.add_argument("--version", type=int, metavar="N", help="version number (default: the next free one)")
    parser.add_argument(
        "--input-size",
        type=int,
        metavar="PX",
        help="side of the input to serve, a multiple of 8, of 32 for the detector (default: what the weights were "
        "trained at)",
    )
    parser.add_argument(
        "--golden",
        type=Path,
        action="append",
        metavar="PICTURE",
        help="picture whose answer goes into the card to check model servers against, may be given several times "
        "(default: those in trainer/golden_pictures)",
    )
    parser.add_argument(
        "--if-missing",
        action="store_true",
        help="do nothing where a version from the same weights is there already",
    )


def run(arguments: argparse.Namespace) -> int:
    """`python -m trainer export`: exports one network or all."""
    variants = weights.VARIANTS if arguments.variant == "all" else (arguments.variant,)
    if arguments.weights is not None and len(variants) > 1:
        raise RefusedError("--weights names one file: say which network it is for, with --variant")

    # Everything that can be refused is refused before anything is written.
    wanted: list[StoredWeights] = []
    for variant in variants:
        path = arguments.weights or weights.default_path(variant)
        stored = weights.load(path, variant)
        folder = arguments.model_repo / servable_name(variant)
        size = served_size(stored.info.input_size, arguments.input_size, weights.input_step(variant))
        present = find_exported(folder, stored.sha256, size) if arguments.if_missing else None
        if present is not None:
            print(f"{folder / str(present)} is up to date")
            continue
        choose_version(folder, arguments.version)
        wanted.append(stored)
    if not wanted:
        return 0

    _import_tensorflow()
    for stored in wanted:
        name = servable_name(stored.variant)
        written = export(
            stored,
            arguments.model_repo,
            version=arguments.version,
            input_size=arguments.input_size,
            pictures=arguments.golden,
            report=partial(_print_step, name),
        )
        print(f"{name}: {written} is ready")
    return 0


def _print_step(name: str, step: str) -> None:
    print(f"{name}: {step}", flush=True)


def _import_tensorflow() -> None:
    from trainer.native_stderr import native_stderr_held_back

    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend == "tensorflow":
        with native_stderr_held_back():
            import keras
            import tensorflow  # noqa: F401
            import tensorflow_serving.apis  # noqa: F401
        backend = keras.backend.backend()  # keras.json can choose another backend
    if backend != "tensorflow":
        raise RefusedError(f"export needs Keras on TensorFlow, it is on {backend}: set KERAS_BACKEND=tensorflow")
