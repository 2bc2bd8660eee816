"""mosec: decoding, inference with dynamic batching, and answering as three stages of processes."""

import json
from typing import Any

import numpy as np
from mosec import Server, Worker
from numpy.typing import NDArray

from benchmarks.peer_servers.work import (
    INFERENCE_WORKERS,
    MAX_BATCH_SIZE,
    MAX_WAIT_S,
    Prepared,
    answer,
    open_model,
    prepare,
)

Crops = list[Prepared]


class Preprocess(Worker):
    """JPEG to crop."""

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> Prepared:
        return prepare(data)


class Inference(Worker):
    """Crops to maps, a batch at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.run = open_model()

    def forward(self, data: Crops) -> list[tuple[Prepared, NDArray[np.float32]]]:
        return list(zip(data, self.run(np.stack([each.crop.pixels for each in data])), strict=True))


class Postprocess(Worker):
    """Maps to JSON."""

    def forward(self, data: tuple[Prepared, Any]) -> dict[str, Any]:
        return answer(*data)

    def serialize(self, data: dict[str, Any]) -> bytes:
        return json.dumps(data).encode()


if __name__ == "__main__":
    server = Server()
    route = "/v1/hand-pose"
    server.append_worker(Preprocess, num=2, route=route)
    server.append_worker(
        Inference,
        num=INFERENCE_WORKERS,
        max_batch_size=MAX_BATCH_SIZE,
        max_wait_time=int(MAX_WAIT_S * 1000),
        route=route,
    )
    server.append_worker(Postprocess, num=1, route=route)
    server.run()
