"""FastAPI with a plain handler: no batching; the work in FastAPI's own pool of threads."""

from typing import Annotated, Any

from fastapi import Body, FastAPI

from benchmarks.peer_servers.work import answer, open_model, prepare

app = FastAPI()
run = open_model()


@app.post("/v1/hand-pose")
def hand_pose(image: Annotated[bytes, Body(media_type="image/jpeg")]) -> dict[str, Any]:
    """One picture's hand."""
    prepared = prepare(image)
    return answer(prepared, run(prepared.crop.pixels[None])[0])
