"""Writes and reads the state of a training in progress, so that it goes on exactly where it stopped.

A run's folder holds `checkpoint.npz` (every variable of model and optimiser and a JSON of progress) and `averaged.npz`
(the network with averaged weights, batch normalisation unfolded, which evaluation and warm starts read). Files are
written under another name and renamed, so a full disk or a kill leaves the previous ones intact. A stop between the two
leaves averages of an earlier update: the next piece of the run writes them again, and `check_averages` refuses them.
Finished weights for serving are `trainer.weights`'s affair.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainer.atomic_files import replaced_atomically
from trainer.errors import RefusedError, TrainerError

if TYPE_CHECKING:
    import keras

CHECKPOINT = "checkpoint.npz"
AVERAGED = "averaged.npz"
_STATE = "state"


class CheckpointError(RefusedError):
    """A checkpoint that is missing, damaged, or of another network."""


class TrainingError(TrainerError):
    """The training cannot go on; the last checkpoint is intact."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training is.

    Attributes:
        variant: which network is trained.
        part: which part of it, as in `TrainConfig`.
        step: updates done.
        samples: samples seen.
        seconds: time spent training, over all pieces of the run.
        input_size: input side in pixels at the last update.
    """

    variant: str
    part: str
    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    input_size: int = 0


def save_checkpoint(
    folder: Path, progress: Progress, model: keras.Model, optimizer: keras.optimizers.Optimizer
) -> None:
    """Replaces the run's checkpoint, or leaves the previous one intact.

    Raises:
        OSError: it cannot be written, on a full disk for example.
        TrainingError: a variable holds values that are not finite.
    """
    arrays = {f"model/{i}": to_numpy(variable) for i, variable in enumerate(model.variables)}
    arrays |= {f"optimizer/{i}": to_numpy(variable) for i, variable in enumerate(optimizer.variables)}
    broken = sum(not np.isfinite(array).all() for array in arrays.values())
    if broken:
        raise TrainingError(
            f"the training has diverged: {broken} of {len(arrays)} variables are not finite after update "
            f"{progress.step}; the checkpoint before it is intact"
        )
    _write(folder / CHECKPOINT, arrays, asdict(progress))


def read_progress(folder: Path) -> Progress | None:
    """How far the run in this folder is; None if it has no checkpoint yet."""
    path = folder / CHECKPOINT
    return Progress(**_read(path, names=(_STATE,))[1]) if path.is_file() else None


def load_checkpoint(
    folder: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer, *, variant: str, part: str
) -> Progress | None:
    """Restores model and optimiser (built already) in place; None if the run has no checkpoint yet."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    arrays, state = _read(path)
    progress = Progress(**state)
    if (progress.variant, progress.part) != (variant, part):
        raise CheckpointError(
            f"{path} is of a training of {progress.variant} ({progress.part}), not of {variant} ({part})"
        )
    _assign(path, "model", model.variables, arrays)
    _assign(path, "optimizer", optimizer.variables, arrays)
    return progress


def save_averaged(folder: Path, progress: Progress, model: keras.Model) -> None:
    """Replaces the run's averaged network by `model`, whose variables hold the averages now."""
    named = {f"{variable.path}": to_numpy(variable) for variable in model.variables}
    _write(folder / AVERAGED, named, asdict(progress))


def read_averaged_progress(path: Path) -> Progress:
    """Of which network averaged weights (a file, or a run's folder) are, and how far it was trained."""
    path = path / AVERAGED if path.is_dir() else path
    return Progress(**_read(path, names=(_STATE,))[1])


def averages_are_of(folder: Path, progress: Progress) -> bool:
    """Whether the averaged network in the run's folder is there, readable, and of the update of `progress`."""
    try:
        return read_averaged_progress(folder).step == progress.step
    except CheckpointError:
        return False


def check_averages(folder: Path) -> None:
    """Refuses averages that are not of the run's last checkpoint. A folder without a checkpoint is left alone.

    Raises:
        CheckpointError: they differ.
    """
    progress = read_progress(folder)
    if progress is not None and not averages_are_of(folder, progress):
        raise CheckpointError(
            f"{folder / AVERAGED} is not of update {progress.step}, as {CHECKPOINT} beside it is: the training was "
            "stopped between the two, or is saving now; the same `train` command again mends it"
        )


def load_averaged(path: Path, model: keras.Model) -> Progress:
    """Copies averaged weights (a file, or a run's folder) into a model of the same variant and widths."""
    path = path / AVERAGED if path.is_dir() else path
    arrays, state = _read(path)
    wanted = {variable.path: tuple(variable.shape) for variable in model.variables}
    held = {name: array.shape for name, array in arrays.items()}
    if wanted != held:
        differing = sorted(name for name in wanted.keys() | held.keys() if wanted.get(name) != held.get(name))
        raise CheckpointError(
            f"{path} ({state.get('variant')}) does not fit {model.name!r}: {differing[0]} is "
            f"{held.get(differing[0], 'missing')} in the file and {wanted.get(differing[0], 'missing')} in the model"
        )
    for variable in model.variables:
        variable.assign(arrays[variable.path])
    return Progress(**state)


def to_numpy(variable: Any) -> NDArray[Any]:
    """The value of a Keras variable as an array of its own, on any backend.

    The variable itself is asked, not its `value`: torch's needs to be detached, which only the variable does.
    """
    return np.array(np.asarray(variable))


def _assign(path: Path, kind: str, variables: Sequence[Any], arrays: Mapping[str, Any]) -> None:
    for i, variable in enumerate(variables):
        array = arrays.get(f"{kind}/{i}")
        if array is None or array.shape != tuple(variable.shape):
            raise CheckpointError(
                f"{path} does not fit: {kind} variable {variable.path} needs shape {tuple(variable.shape)}, "
                f"the file holds {'nothing' if array is None else array.shape}"
            )
        variable.assign(array)


def _write(path: Path, arrays: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    with replaced_atomically(path) as (temporary,), temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **{_STATE: np.array(json.dumps(state)), **arrays})


def _read(path: Path, names: Sequence[str] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names or archive.files}
            return arrays, json.loads(str(arrays.pop(_STATE)))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error
