"""The networks of training runs: built from a configuration, warm-started, and read back whole from a run's folder.

Served networks are `trainer.weights`'s affair, the layers `trainer.models`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer import run_record
from trainer.checkpoints import load_averaged, read_averaged_progress
from trainer.configs import TrainConfig

if TYPE_CHECKING:
    import keras


def build_training_model(config: TrainConfig, warm_start: Path | None = None) -> keras.Model:
    """The network that is trained, with every stage's belief maps as outputs.

    For part "stages" it is a lightweight feature extractor and stage 1, frozen, with the standard network's stages 2
    and 3 on them: the standard network computes the same, only slower.

    With `warm_start`, a run's folder, it starts from the averaged weights of that run. A standard network takes the
    feature extractor and stage 1 of a lightweight run, exactly.
    """
    from trainer.models import build
    from trainer.models.warm_start import standard_from_lightweight

    variant = config.variant if config.part == "all" else "lightweight"
    model = build(variant, batch_norm=True, width_multiplier=config.width_multiplier)
    if warm_start is not None:
        if variant == "standard" and read_averaged_progress(warm_start).variant == "lightweight":
            lightweight = build("lightweight", batch_norm=True, width_multiplier=config.width_multiplier)
            load_averaged(warm_start, lightweight)
            standard_from_lightweight(lightweight, model)
        else:
            load_averaged(warm_start, model)
    return model if config.part == "all" else stages_on_frozen_features(model)


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
    for layer in standard.layers:
        if layer.weights and layer.name.startswith(("stage2", "stage3")):
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return standard


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

    It shares the variables of `model` and adds none.
    """
    import keras

    image = keras.Input(shape=(None, None, 3), dtype="uint8", name="crops")
    scaled = keras.layers.Rescaling(1 / 255, offset=-0.5, dtype="float32", name="to_model_input")(image)
    outputs = [
        keras.layers.Identity(dtype="float32", name=f"stage{number}")(belief_maps)
        for number, belief_maps in enumerate(model(scaled), start=1)
    ]
    return keras.Model(image, outputs, name=f"{model.name}_from_bytes")
