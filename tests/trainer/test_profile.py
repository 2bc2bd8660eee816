"""Counting: the paper's figures, its formulas beside the layers, and counts nobody at Keras or here made up."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from trainer import profile
from trainer.cli import main
from trainer.errors import RefusedError
from trainer.models import VARIANTS, build

TINY = 1 / 16
PAPER = {
    "standard": {"parameters": 24_316_162, "paper_flops": 48_618_880, "giga_macs": 37.12},
    "lightweight": {"parameters": 6_892_930, "paper_flops": 13_767_808, "giga_macs": 8.60},
}


def printed(*arguments: str) -> str:
    output = io.StringIO()
    with redirect_stdout(output):
        assert main(["profile", *arguments]) == 0
    return output.getvalue()


@pytest.fixture(scope="module")
def full_size_json() -> Any:
    return json.loads(printed("--json"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_of_the_networks_are_the_papers(variant: str, full_size_json: Any) -> None:
    count = full_size_json["variants"][variant]
    assert count["parameters"] == PAPER[variant]["parameters"]
    assert count["paper_flops"] == PAPER[variant]["paper_flops"]
    assert round(count["macs"] / 1e9, 2) == PAPER[variant]["giga_macs"]
    assert count["size"] == full_size_json["size"] == 256
    published = full_size_json["paper"][variant]
    assert round(count["parameters"] / 1e6, 2) == published["model_size_millions"]
    assert round(count["paper_flops"] / 1e6, 2) == published["flops_millions"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_layers_account_for_every_parameter_and_operation(variant: str, full_size_json: Any) -> None:
    count = full_size_json["variants"][variant]
    for total in ("parameters", "kernel_weights", "macs"):
        assert sum(layer[total] for layer in count["layers"]) == count[total]


@pytest.mark.parametrize("variant", VARIANTS)
def test_formulas_1_to_8_predict_what_the_layers_hold(variant: str, full_size_json: Any) -> None:
    count = full_size_json["variants"][variant]
    checks = count["formulas"]
    assert [check["equation"] for check in checks] == list(range(1, 9))
    assert all(check["predicted"] == check["measured"] for check in checks)
    separable_layers = 13 if variant == "lightweight" else 0
    assert [check["layers"] for check in checks][6:] == [separable_layers] * 2
    # Every layer is standard, separable or a pointwise one of its own; the separable ones' halves come on top.
    one, three, five, seven = (checks[index]["measured"] for index in (0, 2, 4, 6))
    assert one + three + five == count["macs"]
    assert seven >= three


def test_separable_layers_cost_the_share_that_the_ratio_predicts(full_size_json: Any) -> None:
    shares = [
        layer["share_of_standard"]
        for layer in full_size_json["variants"]["lightweight"]["layers"]
        if layer["kind"] == "separable"
    ]
    assert len(shares) == 13
    assert all(share["measured"] == pytest.approx(share["formula"], rel=1e-12) for share in shares)


def test_formulas_give_hand_computed_values() -> None:
    # 3 x 3 kernel, 4 channels in, 5 out, on 2 x 2 cells.
    assert profile.standard_cost(3, 4, 5, 2) == 720
    assert profile.standard_parameters(3, 4, 5) == 180
    assert profile.depthwise_cost(3, 4, 2) == 144
    assert profile.depthwise_parameters(3, 4) == 36
    assert profile.pointwise_cost(4, 5, 2) == 80
    assert profile.pointwise_parameters(4, 5) == 20
    assert profile.separable_cost(3, 4, 5, 2) == 224
    assert profile.separable_parameters(3, 4, 5) == 56
    assert profile.separable_share_of_standard(3, 5) == pytest.approx(224 / 720) == pytest.approx(56 / 180)


def test_cost_grows_with_the_input_and_parameters_do_not() -> None:
    small, large = (
        profile.count_model(build("lightweight", batch_norm=False, input_size=size, width_multiplier=TINY))
        for size in (64, 128)
    )
    assert large.macs == 4 * small.macs
    assert large.parameters == small.parameters


@pytest.mark.parametrize("variant", VARIANTS)
def test_macs_are_those_that_tensorflows_own_profiler_counts(variant: str) -> None:
    model = build(variant, batch_norm=False, input_size=64, width_multiplier=TINY)
    function = tf.function(lambda image: model(image, training=False), autograph=False)
    graph = function.get_concrete_function(tf.TensorSpec([1, 64, 64, 3], tf.float32)).graph
    profiler = tf.compat.v1.profiler
    options = (
        profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
        .with_accounted_types(["Conv2D", "DepthwiseConv2dNative"])
        .with_empty_output()
        .build()
    )
    flops = profiler.profile(graph, cmd="op", options=options).total_float_ops
    assert flops == 2 * profile.count_model(model).macs


def test_table_shows_the_papers_figures_beside_the_counts() -> None:
    text = printed("--variant", "lightweight", "--layers")
    for figure in ("6,892,930", "6.89", "13,767,808", "13.77", "8.60", "(8)", "k² M + M N", "stage3_unit5_conv3"):
        assert figure in text
    assert "24,316,162" not in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_without_layers_the_table_is_short() -> None:
    assert "stage3_unit5_conv3" not in printed("--variant", "lightweight")


def test_model_with_free_input_size_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="input size is free"):
        profile.count_model(build("lightweight", batch_norm=False, width_multiplier=TINY))


def test_folder_without_a_saved_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"holds no saved_model\.pb"):
        profile.count_servable(tmp_path, 64)


def test_saved_model_of_another_signature_is_refused(tmp_path: Path) -> None:
    module = tf.Module()
    function = tf.function(lambda x: {"y": x}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": function.get_concrete_function()})
    with pytest.raises(RefusedError, match="no signature serving_default with an input image"):
        profile.count_servable(tmp_path, 64)


@pytest.mark.parametrize("arguments", [["--size", "100"], ["--size", "0"], ["--servable", "nowhere"]])
def test_unfit_arguments_are_refused_with_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: --s")
