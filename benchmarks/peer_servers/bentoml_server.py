"""BentoML: a service for the model with adaptive batching, and one in front of it that decodes and answers."""

from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import ContentType
from numpy.typing import NDArray

from benchmarks.peer_servers.work import MAX_BATCH_SIZE, answer, open_model, prepare


@bentoml.service(workers=1, traffic={"timeout": 60})
class Model:
    """Crops to maps."""

    def __init__(self) -> None:
        self.run = open_model()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=2000)
    def predict(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.run(crops)


@bentoml.service(workers=1, traffic={"timeout": 60}, http={"host": "127.0.0.1"})
class HandPose:
    """JPEG to JSON."""

    model = bentoml.depends(Model)

    @bentoml.api(route="/v1/hand-pose")
    async def estimate(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> dict[str, Any]:
        prepared = prepare(image.read_bytes())
        maps = await self.model.to_async.predict(prepared.crop.pixels[None])
        return answer(prepared, maps[0])
