"""Shared by the tests of synthetic hands: the asset, and a small renderer where OpenGL is to be had."""

import sys
from collections.abc import Iterator

import pytest

from trainer.data.synthetic.asset import HandAsset, load_asset
from trainer.data.synthetic.hands import BodyHands
from trainer.data.synthetic.pose import PoseSolver
from trainer.data.synthetic.renderer import NoGraphicsError, Renderer
from trainer.data.synthetic.scene import Stock

SIZE = 96


@pytest.fixture(scope="session")
def asset() -> HandAsset:
    return load_asset()


@pytest.fixture(scope="session")
def solver(asset: HandAsset) -> PoseSolver:
    return PoseSolver(asset)


@pytest.fixture(scope="session")
def stock(asset: HandAsset) -> Stock:
    return Stock(hands=(BodyHands(asset),), body=asset.body)


@pytest.fixture(scope="session")
def renderer() -> Iterator[Renderer]:
    if "tensorflow" in sys.modules:
        pytest.skip("TensorFlow and the renderer do not get on in one process; `make test` gives each its own")
    try:
        made = Renderer(SIZE, SIZE)
    except NoGraphicsError as error:
        pytest.skip(str(error))
    yield made
    made.close()
