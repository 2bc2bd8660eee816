"""Our subset of TensorFlow Serving's messages means on the wire what the official ones mean."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.wrappers_pb2 import Int64Value

from deploy.stand_in.process import ROOT
from service.backends.tensorflow_serving.tensors import from_tensor, predict_request, to_tensor
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from tests.support.models import served_model


@pytest.fixture(scope="module")
def official() -> Any:
    """The official messages, by name, in the same process and descriptor pool as ours."""
    from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2
    from tensorflow.core.protobuf import meta_graph_pb2
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_management_pb2,
        model_pb2,
        predict_pb2,
        status_pb2,
    )
    from tensorflow_serving.config import file_system_storage_path_source_pb2, model_server_config_pb2

    modules = (
        *(get_model_metadata_pb2, get_model_status_pb2, model_management_pb2, model_pb2, predict_pb2, status_pb2),
        *(model_server_config_pb2, meta_graph_pb2),
    )
    found = {name: value for module in modules for name, value in vars(module).items() if isinstance(value, type)}
    source = file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig
    return found | {
        "Tensor": tensor_pb2.TensorProto,
        "TensorShape": tensor_shape_pb2.TensorShapeProto,
        "ServableVersionPolicy": source.ServableVersionPolicy,
    }


def test_every_field_has_the_official_number_and_kind(official: Any) -> None:
    compared = 0

    def compare(ours: Descriptor, theirs: Descriptor) -> None:
        nonlocal compared
        for field in ours.fields:
            other = theirs.fields_by_name[field.name]
            # An enum and an int32 look the same on the wire.
            kinds = {field.type, other.type}
            same = len(kinds) == 1 or kinds == {field.TYPE_INT32, field.TYPE_ENUM}
            assert (field.number, field.is_repeated, same) == (other.number, other.is_repeated, True), field.full_name
            compared += 1
        for nested in ours.nested_types:
            compare(nested, theirs.nested_types_by_name[nested.name])

    for name, message in wire.DESCRIPTOR.message_types_by_name.items():
        compare(message, official[name].DESCRIPTOR)

    assert compared > 50


def test_enum_values_are_the_official_ones(official: Any) -> None:
    from tensorflow.core.framework import types_pb2

    for value in wire.DataType.DESCRIPTOR.values:
        assert types_pb2.DataType.Value(value.name) == value.number
    states = official["ModelVersionStatus"].State
    for value in wire.ModelVersionStatus.State.DESCRIPTOR.values:
        assert states.Value(value.name) == value.number


def test_a_prediction_is_read_by_the_official_messages_and_the_answer_by_ours(official: Any) -> None:
    import tensorflow as tf

    images = [np.random.default_rng(seed).integers(0, 256, (128, 128, 3), np.uint8) for seed in range(3)]

    asked = official["PredictRequest"].FromString(
        predict_request(served_model("standard", version=4), images).SerializeToString()
    )

    assert (asked.model_spec.name, asked.model_spec.version.value) == ("cpm_standard", 4)
    assert asked.model_spec.signature_name == "serving_default"
    assert list(asked.output_filter) == ["belief_maps"]
    np.testing.assert_array_equal(tf.make_ndarray(asked.inputs["image"]), np.stack(images))

    maps = np.random.default_rng(5).random((3, 16, 16, 22), np.float32)
    answer = official["PredictResponse"]()
    answer.outputs["belief_maps"].CopyFrom(tf.make_tensor_proto(maps))
    answer.model_spec.version.value = 4
    ours = wire.PredictResponse.FromString(answer.SerializeToString())
    np.testing.assert_array_equal(from_tensor(ours.outputs["belief_maps"]), maps)
    assert ours.model_spec.version.value == 4


def test_a_tensor_sent_as_single_values_is_read_too() -> None:
    shape = wire.TensorShape(dim=[wire.TensorShape.Dim(size=size) for size in (1, 2, 2)])
    tensor = wire.Tensor(dtype=wire.DT_FLOAT, tensor_shape=shape, float_val=[1, 2, 3, 4])

    np.testing.assert_array_equal(from_tensor(tensor), [[[1, 2], [3, 4]]])


def test_images_that_are_views_are_written_row_by_row() -> None:
    whole = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    view = whole[::2, ::-1]

    assert to_tensor([view]).tensor_content == np.ascontiguousarray(view).tobytes()


@pytest.mark.parametrize(
    "tensor",
    [
        wire.Tensor(dtype=wire.DT_UINT8, tensor_content=b"1234"),
        wire.Tensor(
            dtype=wire.DT_FLOAT,
            tensor_shape=wire.TensorShape(dim=[wire.TensorShape.Dim(size=3)]),
            tensor_content=b"12345678",
        ),
    ],
    ids=["type", "size"],
)
def test_a_tensor_that_is_not_what_it_says_is_refused(tensor: wire.Tensor) -> None:
    with pytest.raises(ValueError, match="the tensor"):
        from_tensor(tensor)


def test_a_configuration_and_a_version_number_survive_the_way(official: Any) -> None:
    config = wire.ModelServerConfig()
    model = config.model_config_list.config.add(name="cpm_standard", base_path="/models", model_platform="tensorflow")
    model.model_version_policy.specific.versions.extend([3, 5])
    model.version_labels["stable"] = 3
    request = wire.ReloadConfigRequest(config=config)

    theirs = official["ReloadConfigRequest"].FromString(request.SerializeToString())

    (read,) = theirs.config.model_config_list.config
    assert list(read.model_version_policy.specific.versions) == [3, 5]
    assert dict(read.version_labels) == {"stable": 3}
    spec = wire.ModelSpec(name="m", version=Int64Value(value=2**40))
    assert official["ModelSpec"].FromString(spec.SerializeToString()).version.value == 2**40


def test_the_generated_code_is_what_the_proto_file_gives(tmp_path: Path) -> None:
    folder = "service/backends/tensorflow_serving/wire"
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}=proto/tensorflow_serving"),
            *(f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"{folder}/serving.proto"),
        ],
        cwd=ROOT,
        check=True,
    )
    for name in ("serving_pb2.py", "serving_pb2.pyi"):
        assert (tmp_path / folder / name).read_text() == (ROOT / folder / name).read_text()
