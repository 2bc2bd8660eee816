"""How many gateways and GPUs it takes to answer N images a second, and what network.

    python deploy/capacity.py --images-per-second 1000
    python deploy/capacity.py --images-per-second 1000 --gpu-crops-per-second 3000    # once that is measured

The formula, where its figures come from, and what to measure in their place: docs/capacity.md. Standard library only.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

Variant = Literal["standard", "lightweight"]

GMAC_AT_256: Final[dict[Variant, float]] = {"standard": 37.12, "lightweight": 8.60}
"""Multiply-accumulates of one 256 x 256 crop, in thousand millions: `make profile`. They go with the crop's area."""

DETECTOR_GMAC: Final = 0.351
"""The hand detector's, of one picture."""

PEAK_TFLOPS: Final = {"t4": 8.1, "l4": 60.0, "a100": 156.0, "h100": 495.0}
"""What the makers promise for dense float32 matrices as TensorFlow multiplies them: T4 float32, the others TF32."""

GATEWAY_IMAGES_PER_CORE_SECOND: Final = 470.0
"""Measured: `python -m benchmarks.gateway_cost`, pictures of a fifth of a megapixel and 57 kB, one crop each."""

STRIDE: Final = 8
CHANNELS: Final = 22
DETECTOR_INPUT_SIZE: Final = 256
DETECTION_BYTES: Final = 16 * 7 * 4


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked.

    Attributes:
        images_per_second: at the busiest time.
        variant: which model answers.
        input_size: side of its input in pixels, from its model card.
        hands_per_image: how often the model runs for an image.
        searches_per_image: how often the hand detector does: 1 for whole pictures, 0 where the hands are named by rois.
        request_bytes: of one image with its headers.
        response_bytes: of one answer.
    """

    images_per_second: float
    variant: Variant = "lightweight"
    input_size: int = 128
    hands_per_image: float = 1.0
    searches_per_image: float = 1.0
    request_bytes: int = 60_000
    response_bytes: int = 3_100


@dataclass(frozen=True, slots=True)
class Machines:
    """What answers.

    Attributes:
        gateway_images_per_core_second: images of one crop that a gateway gets through in a second of one core's time.
        gateway_extra_crop: what each further crop of an image costs, in images of one crop; a search is one, too.
        gateway_share: of that, how much is planned for: the autoscaler's target.
        gpu_peak_tflops: of one GPU.
        gpu_efficiency: share of the peak that the network's convolutions reach.
        gpu_crops_per_second: measured, in place of the two above; None: reckoned from them.
        gpu_share: of a GPU's time, how much is planned for.
        zones: over which all is spread.
        zones_lost: that may fail without anybody noticing.
        servers_rolling: model servers that are away while a new version of them is rolled out.
        gateway_surge: gateways that come beside the others during a roll-out, over all of them.
        cell_images_per_second: as much as one cluster is let grow to.
    """

    gateway_images_per_core_second: float = GATEWAY_IMAGES_PER_CORE_SECOND
    gateway_extra_crop: float = 0.5
    gateway_share: float = 0.6
    gpu_peak_tflops: float = PEAK_TFLOPS["l4"]
    gpu_efficiency: float = 0.25
    gpu_crops_per_second: float | None = None
    gpu_share: float = 0.7
    zones: int = 3
    zones_lost: int = 1
    servers_rolling: int = 1
    gateway_surge: float = 0.25
    cell_images_per_second: float = 20_000.0

    def __post_init__(self) -> None:
        shares = (self.gateway_share, self.gpu_efficiency, self.gpu_share)
        rates = (self.gateway_images_per_core_second, self.gpu_peak_tflops, self.cell_images_per_second)
        if not all(
            0 < rate < math.inf
            for rate in (*rates, 1.0 if self.gpu_crops_per_second is None else self.gpu_crops_per_second)
        ):
            raise ValueError("rates must be above 0 and finite")
        if not all(0 < share <= 1 for share in shares):
            raise ValueError(f"shares must be above 0 and at most 1, got {shares}")
        if not 0 <= self.zones_lost < self.zones:
            raise ValueError(f"fewer zones must be lost than there are, got {self.zones_lost} of {self.zones}")


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes, all clusters together.

    Attributes:
        cells: clusters.
        gateway_cores: processor cores for gateways, one each.
        gateway_cores_rolling: the same while a new version is rolled out.
        gpus: one for each model server.
        gpu_crops_per_second: what one of them is taken to do, flat out.
        gigaflops_per_image: of the models.
        clients_in_gbit: traffic from clients to gateways, thousand million bits a second.
        clients_out_gbit: answers.
        servers_in_gbit: crops and pictures, from gateways to model servers.
        servers_out_gbit: belief maps and detections, back.
        model_connections: between gateways and model servers, in one cell.
    """

    cells: int
    gateway_cores: int
    gateway_cores_rolling: int
    gpus: int
    gpu_crops_per_second: float
    gigaflops_per_image: float
    clients_in_gbit: float
    clients_out_gbit: float
    servers_in_gbit: float
    servers_out_gbit: float
    model_connections: int


def plan(load: Load, machines: Machines) -> Plan:
    """What it takes to answer a load.

    Raises:
        ValueError: if a figure is not positive.
    """
    if not 0 < load.images_per_second < math.inf or min(load.input_size, load.hands_per_image) <= 0:
        raise ValueError("images a second, input size and hands must be above 0 and finite")
    if not 0 <= load.searches_per_image < math.inf:
        raise ValueError("searches must not be negative")
    cells = math.ceil(load.images_per_second / machines.cell_images_per_second)
    images = load.images_per_second / cells
    flops_per_crop = 2e9 * GMAC_AT_256[load.variant] * (load.input_size / 256) ** 2
    reckoned = machines.gpu_peak_tflops * 1e12 * machines.gpu_efficiency / flops_per_crop
    per_gpu = machines.gpu_crops_per_second if machines.gpu_crops_per_second is not None else reckoned
    flops = flops_per_crop * load.hands_per_image + 2e9 * DETECTOR_GMAC * load.searches_per_image
    crops = images * flops / flops_per_crop  # a search is so much of a crop
    cost = 1 + machines.gateway_extra_crop * max(0.0, load.hands_per_image + load.searches_per_image - 1)
    cores = _over_zones(images * cost / (machines.gateway_images_per_core_second * machines.gateway_share), machines)
    gpus = _over_zones(crops / (per_gpu * machines.gpu_share) + machines.servers_rolling, machines)
    maps = (load.input_size // STRIDE) ** 2 * CHANNELS * 4
    bytes_in = 3 * (load.hands_per_image * load.input_size**2 + load.searches_per_image * DETECTOR_INPUT_SIZE**2)
    bytes_out = load.hands_per_image * maps + load.searches_per_image * DETECTION_BYTES
    return Plan(
        cells=cells,
        gateway_cores=cells * cores,
        gateway_cores_rolling=cells * math.ceil(cores * (1 + machines.gateway_surge)),
        gpus=cells * gpus,
        gpu_crops_per_second=per_gpu,
        gigaflops_per_image=flops / 1e9,
        clients_in_gbit=_gbit(load.images_per_second * load.request_bytes),
        clients_out_gbit=_gbit(load.images_per_second * load.response_bytes),
        servers_in_gbit=_gbit(load.images_per_second * bytes_in),
        servers_out_gbit=_gbit(load.images_per_second * bytes_out),
        model_connections=cores * gpus,
    )


def _over_zones(needed: float, machines: Machines) -> int:
    """As many as leave enough when zones are lost, the same number in each zone."""
    left = machines.zones - machines.zones_lost
    return math.ceil(needed / left) * machines.zones


def _gbit(bytes_per_second: float) -> float:
    return bytes_per_second * 8 / 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the plan; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    load = Load(
        parsed.images_per_second,
        parsed.variant,
        parsed.input_size,
        parsed.hands_per_image,
        parsed.searches_per_image,
        parsed.request_bytes,
        parsed.response_bytes,
    )
    try:
        machines = Machines(
            parsed.gateway_images_per_core_second,
            gpu_peak_tflops=PEAK_TFLOPS[parsed.gpu],
            gpu_efficiency=parsed.gpu_efficiency,
            gpu_crops_per_second=parsed.gpu_crops_per_second,
            zones=parsed.zones,
            zones_lost=parsed.zones_lost,
            cell_images_per_second=parsed.cell_images_per_second,
        )
        result = plan(load, machines)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if parsed.json:
        print(json.dumps({"load": asdict(load), "machines": asdict(machines), "plan": asdict(result)}, indent=2))
        return 0
    for name, value in asdict(result).items():
        print(f"{name.replace('_', ' '):24} {value:>16,.{0 if isinstance(value, int) else 2}f}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Gateways, GPUs and network for so many images a second; docs/capacity.md says what is measured."
    )
    parser.add_argument("--images-per-second", type=float, required=True, metavar="N", help="at the busiest time")
    parser.add_argument("--variant", choices=sorted(GMAC_AT_256), default="lightweight")
    parser.add_argument("--input-size", type=int, default=128, help="of the model card (default %(default)s)")
    parser.add_argument("--hands-per-image", type=float, default=1.0, help="runs of the model (default %(default)s)")
    parser.add_argument(
        "--searches-per-image",
        type=float,
        default=1.0,
        help="runs of the hand detector (default %(default)s); 0 with rois",
    )
    parser.add_argument("--request-bytes", type=int, default=60_000, help="(default %(default)s)")
    parser.add_argument("--response-bytes", type=int, default=3_100, help="(default %(default)s)")
    parser.add_argument(
        "--gateway-images-per-core-second",
        type=float,
        default=GATEWAY_IMAGES_PER_CORE_SECOND,
        help="measured, of one crop (default %(default)s)",
    )
    parser.add_argument("--gpu", choices=sorted(PEAK_TFLOPS), default="l4")
    parser.add_argument("--gpu-efficiency", type=float, default=0.25, help="share of the peak (default %(default)s)")
    parser.add_argument("--gpu-crops-per-second", type=float, help="measured, in place of peak and efficiency")
    parser.add_argument("--zones", type=int, default=3)
    parser.add_argument("--zones-lost", type=int, default=1)
    parser.add_argument("--cell-images-per-second", type=float, default=20_000.0, help="of one cluster, at the most")
    parser.add_argument("--json", action="store_true", help="print JSON, with what it was reckoned from")
    return parser


if __name__ == "__main__":
    sys.exit(main())
