"""SIGTERM while streams are open: what was accepted is answered, both protocols end cleanly, the process ends well."""

import asyncio
import json
import os
import signal
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from service.backends.embedded import Run
from service.backends.repository import Servable
from service.bootstrap import Addresses, serve
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.handpose.v1 import hand_pose_pb2_grpc
from service.settings import Settings
from tests.support.gateway import details_of
from tests.support.images import image_bytes
from tests.support.servables import run_without_model, write_card, write_detector_card

PHOTO = image_bytes()
ROI = {"x": 10, "y": 10, "width": 40, "height": 40}
FRAME = pb.EstimateStreamRequest(frame=pb.Frame(image=PHOTO, id=7, rois=[pb.Box(**ROI)]))


class GatedModels:
    """Models that answer when the gate is open; `asked` is set once they were asked since `asked` was cleared."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()

    def __call__(self, servable: Servable) -> Run:
        answer = run_without_model(servable)

        def run(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
            self.asked.set()
            assert self.gate.wait(20)
            return answer(crops)

        return run


async def test_sigterm_answers_the_frames_it_has_and_ends_every_stream_cleanly(tmp_path: Path) -> None:
    write_card(tmp_path, "lightweight")
    write_detector_card(tmp_path)
    models = GatedModels()
    addresses: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
    settings = Settings.from_environment({"HANDPOSE_REST_PORT": "0", "HANDPOSE_MODEL_REPO": str(tmp_path)})
    serving = asyncio.create_task(serve(settings, on_ready=addresses.set_result, open_servable=models))
    (rest_host, rest_port), (grpc_host, grpc_port) = (await addresses).rest, (await addresses).grpc

    async with (
        grpc.aio.insecure_channel(f"{grpc_host}:{grpc_port}") as channel,
        connect(f"ws://{rest_host}:{rest_port}/v1/hand-pose/stream") as socket,
    ):
        stub = hand_pose_pb2_grpc.HandPoseServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        call = stub.EstimateStream()
        await call.write(FRAME)
        await socket.send(json.dumps({"rois": [ROI]}))
        await socket.send(PHOTO)
        assert (await call.read()).frame_id == 7
        assert "result" in json.loads(await socket.recv())

        models.asked.clear()
        models.gate.clear()
        await call.write(FRAME)
        await asyncio.to_thread(models.asked.wait, 20)
        os.kill(os.getpid(), signal.SIGTERM)
        goodbye = json.loads(await socket.recv())  # it has no frame under way: it ends at once
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        models.gate.set()
        last = await call.read()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()

    await asyncio.wait_for(serving, 20)
    assert last.HasField("estimate")
    assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
    assert details_of(ended.value).retry is not None
    assert goodbye["problem"]["code"] == "unavailable"
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
