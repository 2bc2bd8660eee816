"""What many large uploads at a time make the gateway hold, and the bound that its settings promise.

    python -m benchmarks.upload_memory --uploads 200

A gateway whose model costs nothing is sent so many bodies of the largest size allowed, all at once and each slowly
enough for all of them to be under way together. Its memory is watched from idle on. The bound is computed from the
settings alone, as docs/security.md derives it; the exit code tells whether it held.
"""

import argparse
import asyncio
import io
import os
import sys
from collections import Counter
from typing import Any, Final

import grpc
import numpy as np
import uvloop
from PIL import Image

from benchmarks.report import add_json, show, write_json
from benchmarks.servers import EXAMPLE, Running, free_port, gateway, running
from service.inference.decoding import SMALL_IMAGE_BYTES
from service.rpc.guard import HEALTH_TURNS
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.handpose.v1 import hand_pose_pb2_grpc
from service.settings import Settings

_READ_AT_A_TIME: Final = 256 * 1024  # what uvloop reads of a connection before anybody can ask it to pause
_HIGH_WATER: Final = 64 * 1024  # what uvicorn gathers before it does
_UNSENT: Final = 128 * 1024
_GRPC_HOLDS: Final = 2  # times what it receives, in its buffers and in memory that the allocator keeps; as measured
_PIECE: Final = 256 * 1024
_LEVELS: Final = 4  # of noise that compresses to 1.27 bytes a pixel
_MIB: Final = 1024 * 1024


def bound(settings: Settings, connections: int) -> dict[str, int]:
    """The most that the gateway may hold above idle, in bytes, by what holds it.

    Args:
        settings: the gateway's.
        connections: that are open at a time.
    """
    threads = settings.worker_threads or os.cpu_count() or 1
    open_at_a_time = min(connections, settings.max_connections)
    return {
        "bodies and frames": settings.upload_bytes,
        "messages that gRPC receives": _GRPC_HOLDS * settings.upload_bytes,
        "the message that is being unpacked": 2 * settings.max_body_bytes,
        "the copy that one body is read into": settings.max_body_bytes,
        "large images being decoded": settings.decode_bytes,
        "small images, and headers being read": threads * (SMALL_IMAGE_BYTES + settings.max_body_bytes),
        "read from connections and not taken yet": open_at_a_time * (_READ_AT_A_TIME + _HIGH_WATER),
        "written to connections and not taken by the kernel": open_at_a_time * _UNSENT,
        "health checks that gRPC receives": HEALTH_TURNS * settings.max_body_bytes,
    }


def largest(max_bytes: int, kind: str) -> bytes:
    """An image file of almost the largest size.

    Args:
        max_bytes: that it may have.
        kind: "PNG" or "JPEG": noise, which compresses badly; "many pixels": a PNG of fewer colours, so large that it
            waits for its turn to be decoded.
    """
    many = kind == "many pixels"
    side = int((max_bytes / (1.3 if many else 3.1)) ** 0.5)
    noise = np.random.default_rng(0).integers(0, _LEVELS if many else 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    if kind == "JPEG":
        Image.fromarray(noise).save(buffer, kind, quality=100)
    else:
        Image.fromarray(noise).save(buffer, "PNG", compress_level=1 if many else 0)
    return buffer.getvalue()


async def upload(port: int, body: bytes, started: asyncio.Barrier) -> str:
    """Send one body over REST in pieces; what became of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            b"POST /v1/hand-pose HTTP/1.1\r\nHost: gateway\r\nContent-Type: image/png\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        await started.wait()
        answer = asyncio.ensure_future(reader.readline())
        for at in range(0, len(body), _PIECE):
            piece = body[at : at + _PIECE]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0.01)
            if answer.done():
                break
        else:
            writer.write(b"0\r\n\r\n")
        return (await answer)[9:12].decode() or "closed"
    except (ConnectionError, RuntimeError):  # uvloop has the latter for a connection that is gone
        return "closed"
    finally:
        writer.close()


async def call(port: int, body: bytes) -> str:
    """Send one image over gRPC; what became of it."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        stub: Any = hand_pose_pb2_grpc.HandPoseServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
        try:
            await stub.Estimate(pb.EstimateRequest(image=body), timeout=120)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"


async def measure(started: Running, protocol: str, rpc_port: int, body: bytes, uploads: int) -> dict[str, Any]:
    """Send them all at once; what became of them, and the memory at rest and at its most, in bytes."""
    idle = started.resident_bytes()
    watching = asyncio.create_task(_most(started))
    if protocol == "rest":
        barrier = asyncio.Barrier(uploads)
        sent = [upload(started.port, body, barrier) for _ in range(uploads)]
    else:
        sent = [call(rpc_port, body) for _ in range(uploads)]
    outcomes = Counter(await asyncio.gather(*sent))
    watching.cancel()
    peak = (await asyncio.gather(watching, return_exceptions=True))[0]
    assert isinstance(peak, int)
    return {"outcomes": dict(outcomes), "idle": idle, "peak_over_idle": peak - idle}


async def _most(started: Running) -> int:
    most = 0
    try:
        while True:
            most = max(most, started.resident_bytes())
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        return most


def main() -> int:
    """Measure, and print bound and peak."""
    parser = argparse.ArgumentParser(description="Memory of the gateway under many large uploads.")
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--protocol", choices=("rest", "grpc"), default="rest")
    parser.add_argument(
        "--image", choices=("PNG", "JPEG", "many pixels"), default="PNG", help="what is uploaded (default PNG)"
    )
    add_json(parser)
    arguments = parser.parse_args()
    settings = Settings.from_environment(os.environ)
    mine = {name.removeprefix("HANDPOSE_"): value for name, value in os.environ.items() if name.startswith("HANDPOSE_")}
    body = largest(settings.max_body_bytes - 1024, arguments.image)
    rpc_port = free_port()
    server = gateway("null", GRPC_PORT=str(rpc_port), **mine)
    with running(server, EXAMPLE.read_bytes()) as started:
        result = uvloop.run(measure(started, arguments.protocol, rpc_port, body, arguments.uploads))
    parts = bound(settings, arguments.uploads)
    promised = sum(parts.values())
    measured = {
        "bound: the sum": promised,
        "measured: peak over idle": result["peak_over_idle"],
        "idle": result["idle"],
    }
    show(["", "MiB"], [[name, f"{size / _MIB:.0f}"] for name, size in (parts | measured).items()])
    print(f"{arguments.uploads} uploads of {len(body) / _MIB:.1f} MiB: {result['outcomes']}")
    write_json({**result, "bound": promised, "parts": parts}, arguments.json)
    return 0 if result["peak_over_idle"] <= promised else 1


if __name__ == "__main__":
    sys.exit(main())
