"""Reads RHD, the Rendered Hand Pose set: its original folder, and MMPose's JSON of it.

The original layout (v1.1) is `training` and `evaluation`, each with `color`, `mask` and `depth` pictures of 320 x 320
and a pickle of annotations. RHD orders each finger from tip to base; this project from base to tip. A picture shows a
person with two hands, of which the one that covers more pixels of the mask is the sample.

RHD has a label convention of its own, which is kept: its wrist lies about 0.13 of the hand's size nearer to the forearm
than that of photo sets, its thumb_cmc 0.10 away (docs/synthetic-data.md has the measurement).

Coordinates are kept as they are: RHD's camera has its principal point at 160 of 320 pixels, the middle of a picture
that spans [0, 320], so they are continuous already.

The pickle comes from outside, and a pickle can run any program, or be a small file that fills the memory. So its
opcodes are looked through first, and then it is read by an unpickler that knows plain containers and NumPy arrays of
numbers, and builds even those itself.
"""

import hashlib
import io
import pickle
import pickletools
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.pose.images import ImageError, decode_image
from service.pose.keypoints import KEYPOINT_COUNT
from trainer.data.coco import annotation_file, annotations_of, find_image, hand_box, images_by_id, load_json, read_each
from trainer.data.sample import BadSampleError, DataError, Handedness, OnBad, Sample, refuse_bad

PARTS: Final = ("training", "evaluation")
"""The official split, by folder name."""

TO_BASE_FIRST: Final = np.array([0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 20, 19, 18, 17])
"""RHD's index of each keypoint of the project's order, for the left hand; the right hand's are 21 higher."""

_HAND_OF_TYPE: Final[dict[str, Handedness]] = {"left": "left", "right": "right"}
_LEFT_MASK: Final = (2, 17)
_DEPTH_RANGE_M: Final = 5.0
_NOTE_EVERY: Final = 2000  # pictures between lines of progress
_LARGE_BYTES: Final = 5_000_000  # a pickle that takes more than a second to read


def read_rhd(path: Path, *, on_bad: OnBad = refuse_bad) -> list[Sample]:
    """Every sample of the original folder.

    Args:
        path: the folder with `training` and `evaluation`, of which both are read where both are there; or one of
            them. Names begin with the part, so the rule `^evaluation/` holds out the official evaluation part.
        on_bad: what to do about an unusable sample.

    Raises:
        DataError: a file is missing, or the pickle is damaged or holds anything but numbers.
        BadSampleError: a sample is unusable, unless `on_bad` lets it pass.
    """
    folders = [path] if path.name in PARTS else [path / part for part in PARTS if (path / part).is_dir()]
    if not folders or not all(folder.is_dir() for folder in folders):
        raise DataError(f"{path}: no such folder, or none that holds {' or '.join(PARTS)}")
    samples: list[Sample] = []
    for folder in folders:
        annotations = read_annotations(folder / f"anno_{folder.name}.pickle")
        samples.extend(_read_part(folder, annotations, on_bad))
    if not samples:
        raise DataError(f"{path}: the set is empty: no usable hand in {', '.join(f.name for f in folders)}")
    return samples


def read_mmpose_rhd(path: Path, *, on_bad: OnBad = refuse_bad) -> list[Sample]:
    """Every hand of RHD in MMPose's JSON, which looks like COCO but keeps RHD's order, tip to base.

    Args and errors as for `trainer.data.coco.read_coco`.
    """
    file = annotation_file(path)
    document = load_json(file)
    images = images_by_id(document, file)
    annotations = annotations_of(document, file)
    return read_each(annotations, lambda annotation: _mmpose_sample(annotation, images, file), file, on_bad)


def hand_of_mask(mask: NDArray[np.uint8]) -> Handedness:
    """Which hand is the sample: the one that covers more pixels of the mask [H, W]; right if equal."""
    left = np.count_nonzero((mask >= _LEFT_MASK[0]) & (mask <= _LEFT_MASK[1]))
    right = np.count_nonzero(mask > _LEFT_MASK[1])
    return "left" if left > right else "right"


def decode_depth(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Depth in metres, float32 [H, W] in [0, 5], from an RHD depth picture, uint8 RGB [H, W, 3]."""
    high, low = picture[..., 0].astype(np.float32), picture[..., 1].astype(np.float32)
    return (high * np.float32(256) + low) * np.float32(_DEPTH_RANGE_M / 65535)


@dataclass(frozen=True, slots=True)
class PaperSplit:
    """The paper's 8:1:1 over the whole set."""

    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]


def paper_split(samples: Sequence[Sample], seed: int = 0) -> PaperSplit:
    """Splits samples 8:1:1 at random, by picture, each part in the given order.

    A picture's part follows from its name and the seed alone. So all hands of a picture stay together, and neither
    order, nor samples left out, nor another set beside this one moves a picture from one part to another. The parts'
    sizes are 8:1:1 but for chance.

    Raises:
        DataError: there are so few pictures that a part is empty.
    """
    parts: tuple[list[Sample], list[Sample], list[Sample]] = ([], [], [])
    for sample in samples:
        digest = hashlib.sha256(f"{seed}/{sample.name}".encode()).digest()
        tenth = int.from_bytes(digest[:8], "big") % 10
        parts[{0: 1, 1: 2}.get(tenth, 0)].append(sample)
    if not all(parts):
        sizes = ":".join(str(len(part)) for part in parts)
        raise DataError(f"a split of 8:1:1 needs more pictures: these {len(samples)} hands would be split {sizes}")
    return PaperSplit(*map(tuple, parts))


def read_annotations(path: Path) -> dict[int, Any]:
    """The pickle of one part: sample number to a dictionary of `uv_vis` [42, 3], `xyz` [42, 3] and `K` [3, 3].

    What each entry holds is not checked here, only that nothing but containers and numbers is in it.

    Raises:
        DataError: the file is missing, damaged, or holds anything but containers and arrays of numbers.
    """
    try:
        data = path.read_bytes()
        if len(data) > _LARGE_BYTES:
            print(f"  {path}: checking and reading the annotations", file=sys.stderr)
        _look_through(data)
        content = _plain(_PlainUnpickler(io.BytesIO(data), encoding="latin1").load(), {})
    except FileNotFoundError:
        raise DataError(f"{path}: missing annotations") from None
    except _RefusedPickleError as error:
        raise DataError(
            f"{path}: refused, {error}: a pickle of RHD holds plain containers and NumPy arrays only"
        ) from None
    except Exception as error:  # a damaged pickle fails in any way at all
        raise DataError(f"{path}: is no readable pickle: {error}") from error
    if not isinstance(content, dict) or not all(type(number) is int for number in content):
        raise DataError(f"{path}: expected a dictionary by sample number")
    return content


def _read_part(folder: Path, annotations: dict[int, Any], on_bad: OnBad) -> Iterable[Sample]:
    numbers = sorted(annotations)

    def read(number: int) -> Sample | BadSampleError:
        try:
            return _sample(folder, number, annotations[number])
        except BadSampleError as error:
            return error

    # The masks of the whole set take a minute or so to read, so they are read by several threads.
    with ThreadPoolExecutor() as pool:
        for done, result in enumerate(pool.map(read, numbers), start=1):
            if isinstance(result, BadSampleError):
                on_bad(result)
            else:
                yield result
            if done % _NOTE_EVERY == 0:
                print(f"  {folder}: {done} of {len(numbers)} masks read", file=sys.stderr)


def _sample(folder: Path, number: int, annotation: Any) -> Sample:
    file_name = f"{number:05d}.png"
    image_path = folder / "color" / file_name
    if not image_path.is_file():
        raise BadSampleError(f"{image_path}: missing picture")
    uv_vis = annotation.get("uv_vis") if isinstance(annotation, dict) else None
    if not isinstance(uv_vis, np.ndarray) or uv_vis.shape != (2 * KEYPOINT_COUNT, 3):
        shape = uv_vis.shape if isinstance(uv_vis, np.ndarray) else "nothing"
        raise BadSampleError(
            f"{image_path}: uv_vis must hold {2 * KEYPOINT_COUNT} keypoints of u, v, visible; got {shape}"
        )
    handedness = hand_of_mask(_read_mask(folder / "mask" / file_name))
    table = uv_vis[TO_BASE_FIRST + (KEYPOINT_COUNT if handedness == "right" else 0)].astype(np.float64)
    keypoints = np.ascontiguousarray(table[:, :2])
    labelled = np.ones(KEYPOINT_COUNT, bool)
    if not np.isfinite(keypoints).all():
        raise BadSampleError(f"{image_path}: a keypoint is not a finite number")
    return Sample(
        image_path=image_path,
        keypoints_in_image=keypoints,
        labelled=labelled,
        visible=table[:, 2] > 0,
        box_in_image=hand_box(keypoints, labelled, image_path),
        handedness=handedness,
        source="rhd",
        name=f"{folder.name}/color/{file_name}",
    )


def _read_mask(path: Path) -> NDArray[np.uint8]:
    try:
        return np.asarray(decode_image(path.read_bytes()).pixels)[..., 0]
    except OSError as error:
        raise BadSampleError(f"{path}: cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise BadSampleError(f"{path}: {error}") from error


def _mmpose_sample(annotation: dict[str, Any], images: dict[Any, dict[str, Any]], file: Path) -> Sample:
    image = images.get(annotation.get("image_id"))
    if image is None:
        raise BadSampleError(f"{file}: annotation {annotation.get('id')} names an image that is not listed")
    image_path = find_image(file, image)
    values = np.asarray(annotation.get("keypoints", ()), np.float64).ravel()
    if values.shape != (3 * KEYPOINT_COUNT,):
        raise BadSampleError(
            f"{image_path}: annotation {annotation.get('id')} of {file.name} must hold {KEYPOINT_COUNT} keypoints of "
            f"x, y, visible, got {values.size} numbers"
        )
    table = values.reshape(KEYPOINT_COUNT, 3)[TO_BASE_FIRST]
    keypoints = np.ascontiguousarray(table[:, :2])
    labelled = np.ones(KEYPOINT_COUNT, bool)  # RHD knows where hidden keypoints are, too
    return Sample(
        image_path=image_path,
        keypoints_in_image=keypoints,
        labelled=labelled,
        visible=table[:, 2] > 0,
        box_in_image=hand_box(keypoints, labelled, image_path),
        handedness=_HAND_OF_TYPE.get(str(annotation.get("hand_type"))),
        source="mmpose-rhd",
        name=str(image["file_name"]),
    )


class _RefusedPickleError(Exception):
    """The pickle names something that it has no business naming."""


_STRINGS: Final = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"))
_BYTES: Final = frozenset(("BINBYTES", "SHORT_BINBYTES", "BYTEARRAY8"))
_TUPLES: Final = frozenset(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"))
_CONTAINERS: Final = frozenset(("EMPTY_DICT", "DICT", "EMPTY_LIST", "LIST"))
_GLOBALS: Final = frozenset(("GLOBAL", "STACK_GLOBAL"))
_PUTS: Final = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GETS: Final = frozenset(("GET", "BINGET", "LONG_BINGET"))
_REMEMBERED: Final = _STRINGS | _BYTES | _TUPLES | _CONTAINERS | _GLOBALS | {"REDUCE"}
"""Opcodes whose result a pickler may note for later use."""

_OPCODES: Final = (
    _REMEMBERED
    | _PUTS
    | _GETS
    | frozenset(
        (
            "INT",
            "BININT",
            "BININT1",
            "BININT2",
            "LONG",
            "LONG1",
            "FLOAT",
            "BINFLOAT",
            "NONE",
            "NEWTRUE",
            "NEWFALSE",
            "EMPTY_TUPLE",
        )
    )
    | frozenset(("PROTO", "FRAME", "MARK", "STOP", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS"))
)
"""All that a pickle of containers and arrays needs, in every protocol."""


def _look_through(data: bytes) -> None:
    """Refuses what would cost more time or memory than the file's size allows, before anything is built.

    The memo is an array in the unpickler, so its indices must follow one another. A tuple that is used twice could
    double in every line, and be expanded when it is hashed as a key; no pickle of arrays holds one.
    """
    noted: dict[int, bool] = {}  # by index, whether it is a tuple
    before = ""
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name not in _OPCODES:
            raise _RefusedPickleError(f"it holds the opcode {name}")
        if name in _PUTS:
            index = len(noted) if name == "MEMOIZE" else int(argument or 0)
            if not 0 <= index <= len(noted) + 1 or before not in _REMEMBERED:
                raise _RefusedPickleError(f"its memo is not in order ({name} {index} after {before})")
            noted[index] = before in _TUPLES
        elif name in _GETS and noted.get(int(argument or 0), False):
            raise _RefusedPickleError("it uses one tuple twice")
        before = name


class _DtypeShell:
    """Takes the place of `numpy.dtype` while unpickling: a number type by its code, and nothing more."""

    def __init__(self, code: object, *_: object) -> None:
        dtype = np.dtype(code) if isinstance(code, str) else None
        if dtype is None or dtype.kind not in "biuf":
            raise _RefusedPickleError(f"it holds an array of {code!r}")
        self.dtype = dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _ArrayShell:
    """Takes the place of a NumPy array while unpickling; the real one is built from its bytes afterwards."""

    def __init__(self) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # written by Python 2
            data = data.encode("latin1")
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
    if not isinstance(dtype, _DtypeShell) or not isinstance(data, bytes | bytearray):
        raise _RefusedPickleError("it holds an array that is not made of numbers")
    flat = np.frombuffer(bytes(data), dtype.dtype)
    return flat.reshape(tuple(int(side) for side in shape), order="F" if order == "F" else "C")


def _shell(*_: object) -> _ArrayShell:
    return _ArrayShell()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> _ArrayShell:
    shell = _ArrayShell()
    shell.array = _array(data, dtype, shape, order)
    return shell


def _scalar(dtype: Any, data: Any) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    return _array(data, dtype, (1,), "C")[0].item()


def _latin1(text: Any, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _RefusedPickleError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


class _StandIn:
    """What a name in a pickle becomes: it can be called, and nothing else can be done to it."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *arguments: object) -> Any:
        return self._build(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _RefusedPickleError("it changes a function or a class")


_ADMITTED: Final[dict[tuple[str, str], Callable[..., Any]]] = {
    ("numpy", "ndarray"): _ArrayShell,
    ("numpy", "dtype"): _DtypeShell,
    **{
        (f"numpy.{core}.{module}", name): build
        for core in ("core", "_core")  # NumPy 1 and 2
        for module, name, build in (
            ("multiarray", "_reconstruct", _shell),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
    ("_codecs", "encode"): _latin1,  # how old protocols write bytes
}
"""Every name that a pickle may use, and what we do instead, which is harmless."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        build = _ADMITTED.get((module, name))
        if build is None:
            raise _RefusedPickleError(f"it asks for {module}.{name}")
        return _StandIn(build)


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """The unpickled value with every shell replaced by its array; what is shared stays shared.

    `done` holds finished containers by the id of the unpickled ones, which live as long as the outermost does.
    """
    if isinstance(value, _ArrayShell):
        return value.array
    if value is None or type(value) in (bool, int, float, str, bytes, bytearray):
        return value
    if id(value) in done:
        return done[id(value)]
    if type(value) is dict:
        made: Any = {}
        done[id(value)] = made
        made.update({_plain(key, done): _plain(entry, done) for key, entry in value.items()})
    elif type(value) is list:
        made = []
        done[id(value)] = made
        made.extend(_plain(entry, done) for entry in value)
    elif type(value) is tuple:
        made = tuple(_plain(entry, done) for entry in value)
        done[id(value)] = made
    else:
        raise _RefusedPickleError(f"it holds a {type(value).__name__.strip('_')}")
    return made
