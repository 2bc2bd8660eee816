"""Counts parameters and operations of the networks, beside the figures and formulas of the paper.

Three figures that are easily taken for one another are kept apart: the parameters; the paper's "Flops",
which are twice the number of kernel weights and do not depend on the input; and the multiply-accumulates of
a forward pass on an input of a given size. They are counted on the Keras layers, or on the operations and
variables of an exported SavedModel without any help from Keras. Neither training nor time is measured here.

Symbols of the formulas, as in the literature on separable convolutions: a square kernel of k x k, M input
channels, N output channels, F x F output cells ('same' padding, stride 1). Biases are not counted by any of
the formulas.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer.errors import RefusedError
from trainer.weights import DETECTOR, input_step

if TYPE_CHECKING:
    import keras

KernelKind = Literal["standard", "depthwise", "pointwise"]

DEFAULT_SIZE = 256
PAPER_TABLE_1 = {
    "standard": {"model_size_millions": 24.32, "flops_millions": 48.62},
    "lightweight": {"model_size_millions": 6.89, "flops_millions": 13.77},
}
"""The paper's "model size" and "Flops" columns, both in millions."""


def standard_cost(k: int, m: int, n: int, f: int) -> int:
    """Equation (1): multiply-accumulates of a standard convolution, k² M N F²."""
    return k * k * m * n * f * f


def standard_parameters(k: int, m: int, n: int) -> int:
    """Equation (2): kernel weights of a standard convolution, k² M N."""
    return k * k * m * n


def depthwise_cost(k: int, m: int, f: int) -> int:
    """Equation (3): multiply-accumulates of a depthwise convolution, k² M F²."""
    return k * k * m * f * f


def depthwise_parameters(k: int, m: int) -> int:
    """Equation (4): kernel weights of a depthwise convolution, k² M."""
    return k * k * m


def pointwise_cost(m: int, n: int, f: int) -> int:
    """Equation (5): multiply-accumulates of a pointwise (1 x 1) convolution, M N F²."""
    return m * n * f * f


def pointwise_parameters(m: int, n: int) -> int:
    """Equation (6): kernel weights of a pointwise (1 x 1) convolution, M N."""
    return m * n


def separable_cost(k: int, m: int, n: int, f: int) -> int:
    """Equation (7): multiply-accumulates of a separable convolution, k² M F² + M N F²."""
    return depthwise_cost(k, m, f) + pointwise_cost(m, n, f)


def separable_parameters(k: int, m: int, n: int) -> int:
    """Equation (8): kernel weights of a separable convolution, k² M + M N."""
    return depthwise_parameters(k, m) + pointwise_parameters(m, n)


def separable_share_of_standard(k: int, n: int) -> float:
    """(7) over (1), and equally (8) over (2): what is left of a standard convolution, 1 / N + 1 / k²."""
    return 1 / n + 1 / (k * k)


@dataclass(frozen=True)
class KernelCount:
    """One kernel as measured: its array's dimensions and the cells it is applied at."""

    kind: KernelKind
    kernel_size: int
    in_channels: int
    out_channels: int
    weights: int
    output_height: int
    output_width: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates: every weight is used once for each output cell."""
        return self.weights * self.output_height * self.output_width


@dataclass(frozen=True)
class LayerCount:
    """One convolution layer: a single kernel, or the depthwise and pointwise kernels of a separable layer."""

    name: str
    kernels: tuple[KernelCount, ...]
    biases: int

    @property
    def kind(self) -> str:
        """standard, pointwise (1 x 1) or separable."""
        return self.kernels[0].kind if len(self.kernels) == 1 else "separable"

    @property
    def kernel_weights(self) -> int:
        return sum(kernel.weights for kernel in self.kernels)

    @property
    def parameters(self) -> int:
        return self.kernel_weights + self.biases

    @property
    def macs(self) -> int:
        return sum(kernel.macs for kernel in self.kernels)


@dataclass(frozen=True)
class NetworkCount:
    """A network's counts at input `size` x `size`; `source` says what was counted.

    `parameters` is the number of all values the network holds, counted apart from the layers, so that
    anything the layers do not account for would show.
    """

    source: str
    size: int
    parameters: int
    layers: tuple[LayerCount, ...]

    @property
    def kernel_weights(self) -> int:
        return sum(layer.kernel_weights for layer in self.layers)

    @property
    def paper_flops(self) -> int:
        """What the paper prints as "Flops": twice the kernel weights, whatever the input's size."""
        return 2 * self.kernel_weights

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)


@dataclass(frozen=True)
class FormulaCheck:
    """One of the equations (1) to (8), summed over the layers it applies to, and what was measured there."""

    equation: int
    quantity: str
    formula: str
    layers: int
    predicted: int
    measured: int


def count_model(model: keras.Model) -> NetworkCount:
    """Counts a network of `trainer.models` without batch normalisation and with a fixed input size.

    Raises ValueError for a model with a free input size: its cost depends on it.
    """
    size = model.inputs[0].shape[1]
    if size is None:
        raise ValueError("the model's input size is free; build it with an input_size to count its operations")
    layers = []
    for layer in model.layers:
        if not layer.weights:
            continue
        _, height, width, _ = layer.output.shape
        kernels = tuple(
            _kernel_count(tuple(weight.shape), "depthwise" in weight.name, height, width)
            for weight in layer.weights
            if weight.name.endswith("kernel")
        )
        biases = sum(math.prod(weight.shape) for weight in layer.weights if weight.name == "bias")
        layers.append(LayerCount(layer.name, kernels, biases))
    return NetworkCount("keras", int(size), int(model.count_params()), tuple(layers))


def count_servable(folder: Path, size: int) -> NetworkCount:
    """Counts an exported servable (a version folder) from its variables and its graph's operations.

    RefusedError if there is no SavedModel with the project's signature. Takes some seconds for the real
    networks.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    if not (folder / "saved_model.pb").is_file():
        raise RefusedError(f"{folder} is no exported servable: it holds no saved_model.pb")
    # The loaded object owns the variables and has to outlive the counting.
    servable = tf.saved_model.load(str(folder))
    try:
        signature = servable.signatures["serving_default"]
        at_size = tf.function(lambda image: signature(image=image)).get_concrete_function(
            tf.TensorSpec([1, size, size, 3], tf.uint8)
        )
    except (KeyError, TypeError) as error:
        raise RefusedError(f"{folder} has no signature serving_default with an input image: {error}") from error
    variables = {variable.name.partition(":")[0]: tuple(variable.shape) for variable in signature.variables}
    layer_names = list(dict.fromkeys(name.rpartition("/")[0] for name in variables))
    # With variables frozen and the input's shape known, every operation's shapes are known too.
    graph = convert_variables_to_constants_v2(at_size).graph
    kernels: defaultdict[str, list[KernelCount]] = defaultdict(list)
    for operation in graph.get_operations():
        if operation.type in ("Conv2D", "DepthwiseConv2dNative"):
            name = _layer_of_operation(operation.name, layer_names)
            _, height, width, _ = operation.outputs[0].shape
            kernel_shape = tuple(operation.inputs[1].shape)
            kernels[name].append(_kernel_count(kernel_shape, operation.type == "DepthwiseConv2dNative", height, width))
    layers = tuple(
        LayerCount(name, tuple(found), biases=math.prod(variables.get(f"{name}/bias", (0,))))
        for name, found in kernels.items()
    )
    parameters = sum(math.prod(shape) for shape in variables.values())
    return NetworkCount(str(folder), size, parameters, layers)


def formula_checks(layers: Iterable[LayerCount]) -> list[FormulaCheck]:
    """Evaluates equations (1) to (8) on the dimensions of the layers they apply to.

    A 1 x 1 convolution outside a separable layer counts as pointwise. Every layer falls under (1) and (2),
    (5) and (6), or (7) and (8); (3) and (4) are the depthwise halves of the separable ones.
    """
    layers = list(layers)
    kernels = [kernel for layer in layers for kernel in layer.kernels]
    standard = [kernel for kernel in kernels if kernel.kind == "standard"]
    depthwise = [kernel for kernel in kernels if kernel.kind == "depthwise"]
    pointwise = [kernel for kernel in kernels if kernel.kind == "pointwise"]
    separable = [layer for layer in layers if layer.kind == "separable"]

    def side(kernel: KernelCount) -> int:
        if kernel.output_height != kernel.output_width:
            raise ValueError("the formulas are for square maps")
        return kernel.output_height

    def over_kernels(
        found: Sequence[KernelCount],
        cost: Callable[[KernelCount], int],
        parameters: Callable[[KernelCount], int],
    ) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        return (
            (len(found), sum(map(cost, found)), sum(kernel.macs for kernel in found)),
            (len(found), sum(map(parameters, found)), sum(kernel.weights for kernel in found)),
        )

    one_two = over_kernels(
        standard,
        lambda c: standard_cost(c.kernel_size, c.in_channels, c.out_channels, side(c)),
        lambda c: standard_parameters(c.kernel_size, c.in_channels, c.out_channels),
    )
    three_four = over_kernels(
        depthwise,
        lambda c: depthwise_cost(c.kernel_size, c.in_channels, side(c)),
        lambda c: depthwise_parameters(c.kernel_size, c.in_channels),
    )
    five_six = over_kernels(
        pointwise,
        lambda c: pointwise_cost(c.in_channels, c.out_channels, side(c)),
        lambda c: pointwise_parameters(c.in_channels, c.out_channels),
    )
    dimensions = [
        (first.kernel_size, first.in_channels, last.out_channels, side(last))
        for first, last in (layer.kernels for layer in separable)
    ]
    seven_eight = (
        (
            len(separable),
            sum(separable_cost(k, m, n, f) for k, m, n, f in dimensions),
            sum(layer.macs for layer in separable),
        ),
        (
            len(separable),
            sum(separable_parameters(k, m, n) for k, m, n, _ in dimensions),
            sum(layer.kernel_weights for layer in separable),
        ),
    )
    texts = (
        ("standard, cost", "k² M N F²"),
        ("standard, parameters", "k² M N"),
        ("depthwise, cost", "k² M F²"),
        ("depthwise, parameters", "k² M"),
        ("pointwise, cost", "M N F²"),
        ("pointwise, parameters", "M N"),
        ("separable, cost", "k² M F² + M N F²"),
        ("separable, parameters", "k² M + M N"),
    )
    results = (*one_two, *three_four, *five_six, *seven_eight)
    return [
        FormulaCheck(equation, quantity, formula, *result)
        for equation, ((quantity, formula), result) in enumerate(zip(texts, results, strict=True), start=1)
    ]


def as_json(count: NetworkCount) -> dict[str, Any]:
    """The counts of one network as plain JSON values."""
    return {
        "source": count.source,
        "size": count.size,
        "parameters": count.parameters,
        "kernel_weights": count.kernel_weights,
        "paper_flops": count.paper_flops,
        "macs": count.macs,
        "layers": [_layer_as_json(layer) for layer in count.layers],
        "formulas": [asdict(check) for check in formula_checks(count.layers)],
    }


def _layer_as_json(layer: LayerCount) -> dict[str, Any]:
    first, last = layer.kernels[0], layer.kernels[-1]
    content: dict[str, Any] = {
        "name": layer.name,
        "kind": layer.kind,
        "kernel_size": first.kernel_size,
        "in_channels": first.in_channels,
        "out_channels": last.out_channels,
        "output_height": last.output_height,
        "output_width": last.output_width,
        "parameters": layer.parameters,
        "kernel_weights": layer.kernel_weights,
        "macs": layer.macs,
    }
    if layer.kind == "separable":
        standard = standard_parameters(first.kernel_size, first.in_channels, last.out_channels)
        content["share_of_standard"] = {
            "formula": separable_share_of_standard(first.kernel_size, last.out_channels),
            "measured": layer.kernel_weights / standard,
        }
    return content


def _kernel_count(shape: tuple[int, ...], is_depthwise: bool, output_height: int, output_width: int) -> KernelCount:
    rows, columns, in_channels, last = (int(length) for length in shape)
    if rows != columns:
        raise ValueError(f"kernel of shape {shape} is not square")
    kind: KernelKind = "depthwise" if is_depthwise else "pointwise" if rows == 1 else "standard"
    return KernelCount(
        kind=kind,
        kernel_size=rows,
        in_channels=in_channels,
        out_channels=in_channels * last if is_depthwise else last,
        weights=math.prod((rows, columns, in_channels, last)),
        output_height=int(output_height),
        output_width=int(output_width),
    )


def _layer_of_operation(operation_name: str, layer_names: Sequence[str]) -> str:
    """The layer an operation belongs to: the part of its path that is the layer's name, perhaps numbered."""
    parts = operation_name.split("/")
    for layer in layer_names:
        pattern = re.compile(rf"{re.escape(layer)}(_\d+)?")
        if any(pattern.fullmatch(part) for part in parts):
            return layer
    return operation_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m trainer profile`."""
    parser.add_argument("--variant", choices=(*sorted(PAPER_TABLE_1), DETECTOR), help="one network only (default: all)")
    parser.add_argument(
        "--size",
        type=int,
        default=DEFAULT_SIZE,
        metavar="PX",
        help="side of the input, a multiple of 32 where the detector is counted (default: %(default)s)",
    )
    parser.add_argument("--layers", action="store_true", help="list every layer")
    parser.add_argument("--json", action="store_true", help="print JSON (always with every layer)")
    parser.add_argument(
        "--servable",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="also count this exported version folder, from its graph; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """`python -m trainer profile`: prints the counts, as tables or as JSON."""
    from trainer.native_stderr import native_stderr_held_back

    chosen = [variant for variant in (*PAPER_TABLE_1, DETECTOR) if arguments.variant in (None, variant)]
    step = max(map(input_step, chosen))
    if arguments.size < step or arguments.size % step:
        raise RefusedError(f"--size {arguments.size} is not a positive multiple of {step}")
    for folder in arguments.servable:
        if not folder.is_dir():
            raise RefusedError(f"--servable {folder} is no folder")
    with native_stderr_held_back():
        from trainer.models import build
        from trainer.models.detector import build_detector

    variants: dict[str, NetworkCount] = {
        variant: count_model(
            build_detector(batch_norm=False, input_size=arguments.size)
            if variant == DETECTOR
            else build(variant, batch_norm=False, input_size=arguments.size)
        )
        for variant in chosen
    }
    servables = {}
    if arguments.servable:
        with native_stderr_held_back():
            import tensorflow  # noqa: F401  (its start-up messages, where Keras runs on another backend)
        servables = {str(folder): count_servable(folder, arguments.size) for folder in arguments.servable}
    if arguments.json:
        content = {
            "size": arguments.size,
            "paper": {variant: PAPER_TABLE_1[variant] for variant in variants if variant in PAPER_TABLE_1},
            "variants": {variant: as_json(count) for variant, count in variants.items()},
            "servables": {folder: as_json(count) for folder, count in servables.items()},
        }
        print(json.dumps(content, indent=2))
    else:
        _print_tables(variants, servables, with_layers=arguments.layers)
    return 0


def _print_tables(
    variants: Mapping[str, NetworkCount], servables: Mapping[str, NetworkCount], *, with_layers: bool
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    counts = {**variants, **servables}
    size = next(iter(counts.values())).size

    def table(title: str, columns: Sequence[str], *, text_columns: int = 1) -> Table:
        made = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for index, column in enumerate(columns):
            made.add_column(column, justify="left" if index < text_columns else "right")
        return made

    summary = table(
        f"The networks at {size} x {size}",
        ["network", "parameters", "paper, M", "2 x kernel weights", 'paper "Flops", M', "GMAC"],
    )
    for name, count in counts.items():
        paper = PAPER_TABLE_1.get(name)
        summary.add_row(
            name,
            f"{count.parameters:,}",
            f"{paper['model_size_millions']:.2f}" if paper else "",
            f"{count.paper_flops:,}",
            f"{paper['flops_millions']:.2f}" if paper else "",
            f"{count.macs / 1e9:.2f}",
        )
    console.print(summary)
    console.print(
        'The paper\'s "Flops" are twice the kernel weights and do not depend on the input; '
        "GMAC is what a forward pass computes.\n",
        highlight=False,
    )

    for name, count in counts.items():
        formulas = table(
            f"{name}: equations (1) to (8) beside the layers",
            ["eq.", "convolution", "formula", "layers", "by formula", "measured"],
            text_columns=3,
        )
        for check in formula_checks(count.layers):
            formulas.add_row(
                f"({check.equation})",
                check.quantity,
                check.formula,
                f"{check.layers}",
                f"{check.predicted:,}",
                f"{check.measured:,}",
            )
        console.print(formulas)
        if with_layers:
            console.print(_layer_table(name, count, table))
    console.print(
        "k: kernel side, M and N: channels in and out, F: side of the output map. "
        "A separable convolution needs 1 / N + 1 / k² of a standard one, in cost and in parameters.",
        highlight=False,
    )


def _layer_table(name: str, count: NetworkCount, table: Callable[..., Any]) -> Any:
    layers = table(
        f"{name}: layers",
        ["layer", "kind", "kernel", "in", "out", "map", "parameters", "MMAC", "of standard", "1/N + 1/k²"],
        text_columns=2,
    )
    for layer in map(_layer_as_json, count.layers):
        share = layer.get("share_of_standard")
        layers.add_row(
            layer["name"],
            layer["kind"],
            f"{layer['kernel_size']} x {layer['kernel_size']}",
            f"{layer['in_channels']}",
            f"{layer['out_channels']}",
            f"{layer['output_height']} x {layer['output_width']}",
            f"{layer['parameters']:,}",
            f"{layer['macs'] / 1e6:,.1f}",
            f"{share['measured']:.4f}" if share else "",
            f"{share['formula']:.4f}" if share else "",
        )
    return layers
