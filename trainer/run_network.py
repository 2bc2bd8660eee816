"""The networks of training runs: built from a configuration, warm-started, and read back whole from a run's folder.

Served networks are `trainer.weights`'s affair, the layers `trainer.models`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainer import run_record, weights
from trainer.checkpoints import load_averaged, read_averaged_progress
from trainer.configs import TrainConfig
from trainer.data.pipeline import to_model_input
from trainer.weights import DETECTOR

if TYPE_CHECKING:
    import keras


Crops = Callable[[], NDArray[np.uint8]]
"""Makes crops as the training sees them, uint8 RGB [N, H, W, 3]."""


def build_training_model(
    config: TrainConfig,
    warm_start: Path | None = None,
    crops: Crops | None = None,
    stages: Path | None = None,
) -> keras.Model:
    """The network that is trained, with every stage's belief maps as outputs; the detector's is its grid.

    For part "stages" it is a lightweight feature extractor and stage 1, frozen, with the standard network's stages 2
    and 3 on them: the standard network computes the same, only slower.

    With `warm_start`, it starts from the averaged weights of a run, named by its folder, or from finished weights,
    named by their .npz file. A standard network takes the feature extractor and stage 1 of a lightweight one, exactly.
    Finished weights have lost their batch normalisation's statistics, so they need `crops` to take them from. For part
    "stages", `stages` names finished weights of a standard network whose stages 2 and 3 are where these begin; else
    they begin fresh.

    Raises:
        CheckpointError: the run's averages are missing, damaged or of another network.
        WeightsError: the same of finished weights.
    """
    from trainer.models import build
    from trainer.models.warm_start import standard_from_lightweight

    if config.variant == DETECTOR:
        return _training_detector(config, warm_start, crops)
    variant = config.variant if config.part == "all" else "lightweight"
    model = build(variant, batch_norm=True, width_multiplier=config.width_multiplier)
    if warm_start is not None:
        if variant == "standard" and _variant_of(warm_start) == "lightweight":
            lightweight = build("lightweight", batch_norm=True, width_multiplier=config.width_multiplier)
            _start_from(warm_start, lightweight, crops)
            standard_from_lightweight(lightweight, model)
        else:
            _start_from(warm_start, model, crops)
    if config.part == "all":
        freeze_blocks(model, config.frozen_blocks)
        return model
    trained = stages_on_frozen_features(model)
    if stages is not None:
        standard = build("standard", batch_norm=True, width_multiplier=config.width_multiplier)
        _start_from(stages, standard, crops)
        _copy_stages(standard, trained)
    return trained


def _training_detector(config: TrainConfig, warm_start: Path | None, crops: Crops | None) -> keras.Model:
    from trainer.models.detector import DetectorWidths, build_detector

    model = build_detector(batch_norm=True, widths=DetectorWidths().scaled(config.width_multiplier))
    if warm_start is not None:
        _start_from(warm_start, model, crops)
    return model


def freeze_blocks(model: keras.Model, count: int) -> None:
    """Takes the first blocks of the feature extractor out of the training."""
    for layer in model.layers:
        if layer.name.startswith(tuple(f"conv{block}_" for block in range(1, count + 1))):
            layer.trainable = False


def _variant_of(start: Path) -> str:
    return weights.load(start).variant if start.is_file() else read_averaged_progress(start).variant


def _start_from(start: Path, model: keras.Model, crops: Crops | None) -> None:
    """Gives a network with batch normalisation the weights of a run's folder or of a weights file."""
    from trainer.models import unfold_batch_norm, variant_and_widths

    if not start.is_file():
        load_averaged(start, model)
        return
    if crops is None:
        raise ValueError("finished weights are taken up with crops to take statistics from")
    variant, widths = variant_and_widths(model)
    folded = weights.to_model(weights.load(start, variant), all_stages=True)
    if variant_and_widths(folded)[1] != widths:
        raise weights.WeightsError(f"{start} holds a network of other widths than this configuration's")
    unfold_batch_norm(folded, model, to_model_input(crops()))


def stages_on_frozen_features(lightweight: keras.Model) -> keras.Model:
    """Fresh stages 2 and 3 of the standard network on a frozen lightweight network's features and stage 1."""
    import keras

    from trainer.models import architecture_of
    from trainer.models.layers import apply_table, stage_table

    widths = architecture_of(lightweight).widths
    lightweight.trainable = False
    features = lightweight.get_layer("conv5_3_relu").output
    belief_maps = [lightweight.get_layer("belief_maps_stage1").output]
    for stage in (2, 3):
        stage_input = keras.layers.Concatenate(name=f"stage{stage}_input")([belief_maps[-1], features])
        x = apply_table(stage_input, stage_table("standard", stage, widths), batch_norm=True)
        belief_maps.append(keras.layers.Identity(dtype="float32", name=f"belief_maps_stage{stage}")(x))
    return keras.Model(lightweight.inputs[0], belief_maps, name="cpm_standard_stages")


def whole_network(model: keras.Model, config: TrainConfig) -> keras.Model:
    """The network of `config.variant` that computes what the training model does; itself unless part "stages"."""
    if config.part == "all":
        return model
    from trainer.models import build
    from trainer.models.warm_start import standard_from_lightweight

    lightweight = build("lightweight", batch_norm=True, width_multiplier=config.width_multiplier)
    for layer in lightweight.layers:
        if layer.weights and not layer.name.startswith(("stage2", "stage3")):
            layer.set_weights(model.get_layer(layer.name).get_weights())
    standard = build("standard", batch_norm=True, width_multiplier=config.width_multiplier)
    standard_from_lightweight(lightweight, standard)
    _copy_stages(model, standard)
    return standard


def _copy_stages(source: keras.Model, target: keras.Model) -> None:
    """Gives `target` the standard network's stages 2 and 3 of `source`."""
    for layer in target.layers:
        if layer.weights and layer.name.startswith(("stage2", "stage3")):
            layer.set_weights(source.get_layer(layer.name).get_weights())


def network_of_run(folder: Path) -> keras.Model:
    """The whole network of the run in a folder with its averaged weights, all stages, batch normalisation unfolded.

    Raises RunError or CheckpointError if the folder's record or weights are missing or damaged.
    """
    config = run_record.read(folder).config
    model = build_training_model(config)
    load_averaged(folder, model)
    return whole_network(model, config)


def served_from_bytes(model: keras.Model) -> keras.Model:
    """`model`, all stages, from crops as bytes: uint8 RGB [N, H, W, 3], made [-0.5, 0.5] on the device.

    A detector's is its grid, from whole pictures.

    It shares the variables of `model` and adds none.
    """
    import keras

    image = keras.Input(shape=(None, None, 3), dtype="uint8", name="crops")
    scaled = keras.layers.Rescaling(1 / 255, offset=-0.5, dtype="float32", name="to_model_input")(image)
    if len(model.outputs) == 1:
        return keras.Model(image, model(scaled), name=f"{model.name}_from_bytes")
    outputs = [
        keras.layers.Identity(dtype="float32", name=f"stage{number}")(belief_maps)
        for number, belief_maps in enumerate(model(scaled), start=1)
    ]
    return keras.Model(image, outputs, name=f"{model.name}_from_bytes")
