"""LitServe: decoding, batching and encoding as its LitAPI splits them; a file upload, as in its image examples."""

import argparse
from typing import Any

import litserve as ls
import numpy as np
from fastapi import Request

from benchmarks.peer_servers.work import (
    INFERENCE_WORKERS,
    MAX_BATCH_SIZE,
    MAX_WAIT_S,
    Prepared,
    answer,
    open_model,
    prepare,
)


class HandPose(ls.LitAPI):
    """Keeps what the answer needs beside the crop."""

    def setup(self, device: str) -> None:  # noqa: ARG002 -- LitAPI passes it
        self.run = open_model()

    def decode_request(self, request: Request) -> Prepared:
        image: Any = request["image"]  # with this annotation LitServe hands over the form's content
        return prepare(image.file.read())

    def batch(self, inputs: list[Prepared]) -> list[Prepared]:
        return inputs

    def predict(self, batch: list[Prepared]) -> list[tuple[Prepared, Any]]:
        return list(zip(batch, self.run(np.stack([each.crop.pixels for each in batch])), strict=True))

    def unbatch(self, output: list[tuple[Prepared, Any]]) -> list[tuple[Prepared, Any]]:
        return output

    def encode_response(self, output: tuple[Prepared, Any]) -> dict[str, Any]:
        return answer(*output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    api = HandPose(max_batch_size=MAX_BATCH_SIZE, batch_timeout=MAX_WAIT_S, api_path="/v1/hand-pose")
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=INFERENCE_WORKERS)
    server.run(port=parser.parse_args().port, host="127.0.0.1", generate_client_file=False, log_level="warning")
