"""The model servers' files: which versions they load, what each label stands for, how large their batches are.

The servers read the configuration when they start, and look at it again every few minutes. What is written here is a
whole one, renamed into place.
"""

import re
from pathlib import Path, PurePosixPath

from google.protobuf import text_format

from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from service.files import replace


class ManagementError(Exception):
    """What was asked for was not done; one line for the operator, who finds everything as it was."""


def read_config(path: Path) -> wire.ModelServerConfig:
    """The configuration in a file.

    Raises:
        ManagementError: if it cannot be read, or holds what would be lost when it is written again.
    """
    try:
        return text_format.Parse(path.read_text(), wire.ModelServerConfig())
    except OSError as error:
        raise ManagementError(f"{path} cannot be read: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        # Something this command does not know would be lost when it writes the file.
        raise ManagementError(f"{path} is not a configuration that can be changed here: {error}") from error


def write_config(path: Path, config: wire.ModelServerConfig) -> None:
    """Write a configuration in one step: the model servers may read it at any moment."""
    replace(path, text_format.MessageToString(config).encode())


def largest_batch(path: Path) -> int:
    """`max_batch_size` in a model server's file of batching parameters.

    Raises:
        ManagementError: if the file cannot be read, or does not say.
    """
    try:
        found = re.search(r"^\s*max_batch_size\s*\{\s*value\s*:\s*(\d+)", path.read_text(), re.MULTILINE)
    except (OSError, UnicodeDecodeError) as error:
        raise ManagementError(f"{path} cannot be read: {error}") from error
    if found is None:
        raise ManagementError(f"{path} has no max_batch_size")
    return int(found[1])


def model_in(config: wire.ModelServerConfig, name: str) -> wire.ModelConfig:
    """The part of a configuration about one model. Raises ManagementError if there is none."""
    for model in config.model_config_list.config:
        if model.name == name:
            return model
    raise ManagementError(f"the configuration has no model {name}")


def with_model(config: wire.ModelServerConfig, name: str) -> wire.ModelServerConfig:
    """A copy that has a model, if need be in a folder beside the first one's: a configuration may be older than it.

    Raises:
        ManagementError: the configuration has no model at all.
    """
    changed = wire.ModelServerConfig()
    changed.CopyFrom(config)
    models = changed.model_config_list.config
    if not models:
        raise ManagementError("the configuration has no models")
    if name not in {model.name for model in models}:
        base_path = str(PurePosixPath(models[0].base_path).with_name(name))
        models.add(name=name, base_path=base_path, model_platform=models[0].model_platform)
    return changed


def specific_versions(model: wire.ModelConfig) -> set[int] | None:
    """The versions that a model's policy names; None if it names none but stands for the newest, or for all."""
    policy = model.model_version_policy
    return set(policy.specific.versions) if policy.WhichOneof("policy_choice") == "specific" else None


def with_versions(config: wire.ModelServerConfig, name: str, versions: set[int]) -> wire.ModelServerConfig:
    """A copy in which exactly these versions of a model are loaded."""
    changed = wire.ModelServerConfig()
    changed.CopyFrom(config)
    policy = model_in(changed, name).model_version_policy
    policy.specific.Clear()
    policy.specific.versions.extend(sorted(versions))
    return changed


def with_label(config: wire.ModelServerConfig, name: str, label: str, version: int) -> wire.ModelServerConfig:
    """A copy in which a label stands for a version, "previous_<label>" for what it stood for before, and what that one
    stood for is loaded no more.
    """
    labels = dict(model_in(config, name).version_labels)
    versions = specific_versions(model_in(config, name)) or set()
    dropped = labels.get(previous(label))
    if label in labels:
        labels[previous(label)] = labels[label]
    labels[label] = version
    if dropped not in labels.values():
        versions.discard(dropped or 0)
    changed = with_versions(config, name, versions)
    model_in(changed, name).version_labels.update(labels)
    return changed


def previous(label: str) -> str:
    """The label of the version that a label stood for before."""
    return f"previous_{label}"
