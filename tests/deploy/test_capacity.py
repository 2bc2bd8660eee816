"""The capacity page says what the calculator reckons, and the calculator reckons what the formula says."""

import json
import re
from pathlib import Path

import pytest

from deploy.capacity import GATEWAY_IMAGES_PER_CORE_SECOND, Load, Machines, main, plan

PAGE = Path(__file__).resolve().parents[2] / "docs" / "capacity.md"
ONE_ZONE = {"zones": 1, "zones_lost": 0}


def test_the_page_has_the_calculators_own_numbers() -> None:
    rows = re.findall(r"^\| ([\d,]+) \| (lightweight|standard) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)

    assert len(rows) == 8
    for images, variant, cells in rows:
        result = plan(
            Load(float(images.replace(",", "")), "standard" if variant == "standard" else "lightweight"), Machines()
        )
        counts = (result.cells, result.gateway_cores, result.gateway_cores_rolling, result.gpus)
        bits = (result.clients_in_gbit, result.clients_out_gbit, result.servers_in_gbit, result.servers_out_gbit)
        assert cells.split(" | ") == [f"{each:,}" for each in counts] + [f"{each:.2f}" for each in bits]


def test_one_gpu_for_what_one_gpu_does() -> None:
    machines = Machines(gpu_crops_per_second=100.0, gpu_share=1.0, servers_rolling=0, **ONE_ZONE)

    assert plan(Load(100.0, searches_per_image=0.0), machines).gpus == 1
    assert plan(Load(100.1, searches_per_image=0.0), machines).gpus == 2
    assert plan(Load(100.0, hands_per_image=2.0, searches_per_image=0.0), machines).gpus == 2


def test_the_cost_goes_with_the_area_and_the_network() -> None:
    lightweight, machines = Load(1.0, searches_per_image=0.0, input_size=256), Machines()
    half, standard = Load(1.0, searches_per_image=0.0), Load(1.0, "standard", 256, 1.0, 0.0)

    assert plan(lightweight, machines).gigaflops_per_image == pytest.approx(2 * 8.60)
    assert plan(half, machines).gigaflops_per_image == pytest.approx(2 * 8.60 / 4)
    assert plan(standard, machines).gigaflops_per_image == pytest.approx(2 * 37.12)
    assert plan(half, machines).gpu_crops_per_second == pytest.approx(
        4 * plan(lightweight, machines).gpu_crops_per_second
    )


def test_a_search_adds_the_detectors_run_and_its_picture() -> None:
    searched, named = plan(Load(1e9 / 8), Machines()), plan(Load(1e9 / 8, searches_per_image=0.0), Machines())

    assert searched.gigaflops_per_image - named.gigaflops_per_image == pytest.approx(2 * 0.351)
    assert searched.servers_in_gbit - named.servers_in_gbit == pytest.approx(256 * 256 * 3)
    assert searched.servers_out_gbit - named.servers_out_gbit == pytest.approx(16 * 7 * 4)
    assert searched.gpu_crops_per_second == named.gpu_crops_per_second
    assert searched.gpus > named.gpus


def test_what_is_left_when_a_zone_is_lost_is_enough() -> None:
    load, machines = Load(12_345.0), Machines()
    result = plan(load, machines)
    left = (machines.zones - machines.zones_lost) / machines.zones
    cost = 1 + machines.gateway_extra_crop * (load.hands_per_image + load.searches_per_image - 1)

    assert result.gateway_cores % machines.zones == result.gpus % machines.zones == 0
    assert (
        result.gateway_cores * left * GATEWAY_IMAGES_PER_CORE_SECOND * machines.gateway_share
        >= load.images_per_second * cost
    )
    assert (
        result.gpus * left - machines.servers_rolling
    ) * result.gpu_crops_per_second * machines.gpu_share >= load.images_per_second * load.hands_per_image


def test_pixels_and_maps_fill_the_network() -> None:
    result = plan(Load(1e9 / 8, searches_per_image=0.0, request_bytes=1000, response_bytes=10), Machines())

    assert result.clients_in_gbit == pytest.approx(1000)
    assert result.clients_out_gbit == pytest.approx(10)
    assert result.servers_in_gbit == pytest.approx(128 * 128 * 3)
    assert result.servers_out_gbit == pytest.approx(16 * 16 * 22 * 4)


def test_no_cluster_grows_beyond_its_limit() -> None:
    machines = Machines(cell_images_per_second=1000.0)

    assert plan(Load(1000.0), machines).cells == 1
    assert plan(Load(1001.0), machines).cells == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--images-per-second", "0"],
        ["--images-per-second", "nan"],
        ["--images-per-second", "10", "--zones-lost", "3"],
        ["--images-per-second", "10", "--gpu-efficiency", "1.5"],
        ["--images-per-second", "10", "--gpu-crops-per-second", "0"],
    ],
    ids=" ".join,
)
def test_figures_that_make_no_sense_end_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "must be" in capsys.readouterr().err


def test_json_says_what_it_was_reckoned_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images-per-second", "10", "--json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    assert printed["load"]["images_per_second"] == 10
    assert printed["machines"]["gpu_efficiency"] == 0.25
    assert printed["plan"]["cells"] == 1
