"""The gateway as a browser sees it: on a port of its own in a thread of its own, with a hand that is known.

`Served` can be stopped and started again on the same port, which is what a restart looks like from outside.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from service.inference.access import AccessPolicy, ApiKey, Doorkeeper
from service.inference.keys import digest_of
from service.inference.models import Variant
from service.pose.keypoints import KEYPOINT_COUNT
from tests.support.backend import Crops, FakeBackend, Maps, maps_of, spread_keypoints
from tests.support.gateway import Gateway
from tests.support.models import served_model

INPUT_SIZES: Final[dict[Variant, int]] = {"lightweight": 128, "standard": 160}
"""The fake models differ in this, so that the backend can tell from the crops which one is asked."""

STANDARD_SEES_FURTHER_RIGHT: Final = 6.0
"""Input pixels between the two models' keypoints, so that there is a distance to show."""

_RED_ENOUGH: Final = 40.0  # pixels' worth of red that count as a mark

T = TypeVar("T")


class Served:
    """A running gateway on a fake backend.

    Args:
        key: the only key that it lets in; None: it asks for none.
    """

    def __init__(self, key: str | None = None) -> None:
        self._key = key
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway")
        self._thread.start()
        self._workers = ThreadPoolExecutor(2)
        self._port = 0
        self._gateway: Gateway | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def backend(self) -> FakeBackend:
        assert self._gateway is not None
        return self._gateway.backend

    def start(self) -> None:
        """Serve; after `stop`, on the same port as before."""

        async def start() -> Gateway:
            models = [served_model(variant, input_size=size) for variant, size in INPUT_SIZES.items()]
            doorkeeper = None
            if self._key is not None:
                doorkeeper = Doorkeeper(AccessPolicy(), time=asyncio.get_running_loop().time)
                doorkeeper.follow([ApiKey("page", digest_of(self._key))])
            backend = FakeBackend(*models, answer=hand_at_mark)
            gateway = Gateway(self._workers, backend=backend, doorkeeper=doorkeeper)
            await gateway.start()
            await gateway.start_rest(self._port)
            return gateway

        self._gateway = self._run(start())
        self._port = self._gateway.rest_port

    def stop(self) -> None:
        """Cut every connection and listen no more."""
        if self._gateway is not None:
            self._run(self._gateway.stop())
            self._gateway = None

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._workers.shutdown()

    def do(self, action: Callable[[FakeBackend], T]) -> T:
        """Give the backend an order on the gateway's own thread."""

        async def act() -> T:
            return action(self.backend)

        return self._run(act())

    def answer(self, image: bytes, variant: Variant = "lightweight", rois: tuple[str, ...] = ()) -> dict[str, Any]:
        """What the API says, asked without a browser."""
        answer = httpx.post(
            f"{self.url}/v1/hand-pose",
            content=image,
            params={"roi": list(rois)},
            headers={"Content-Type": "application/octet-stream", "X-Model-Variant": variant},
        )
        result: dict[str, Any] = answer.json()
        return result

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)


def hand_at_mark(crops: Crops) -> Maps:
    """Belief maps of `spread_keypoints` around each crop's red mark and of its size; without a mark, in the middle."""
    size = crops[0].shape[0]
    points = np.stack([_hand_in(crop) for crop in crops])
    if size == INPUT_SIZES["standard"]:
        points[..., 0] += STANDARD_SEES_FURTHER_RIGHT
    return maps_of(points, size)


def _hand_in(crop: NDArray[np.uint8]) -> NDArray[np.float32]:
    size = crop.shape[0]
    usual = spread_keypoints(size)
    red = np.where((crop[..., 0] > 128) & (crop[..., 1] < 96) & (crop[..., 2] < 96), 1.0, 0.0)
    if red.sum() < _RED_ENOUGH:
        return usual
    centres = np.arange(size) + 0.5
    centre = (red.sum(axis=0) @ centres / red.sum(), red.sum(axis=1) @ centres / red.sum())
    shape = (usual - usual.mean(axis=0)) / np.ptp(usual)
    hand: NDArray[np.float32] = (np.array(centre) + shape * np.sqrt(red.sum())).astype(np.float32)
    assert hand.shape == (KEYPOINT_COUNT, 2)
    return hand
