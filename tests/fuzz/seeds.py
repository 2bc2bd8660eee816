"""Writes the seeds into the corpus: one small input of each kind that a target tells apart.

    python -m tests.fuzz.seeds

Inputs that once broke something lie beside them, under names that begin with `found-`, and stay.
"""

import base64
import io
import json
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from PIL import Image

from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from tests.fuzz import files, keys, rest, rpc, stream
from tests.fuzz.targets import CORPUS
from tests.support import heic
from tests.support.images import image_bytes, jpeg_in_scans

_SIZE: Final = (9, 7)


def main() -> int:
    """Write them all."""
    for target, inputs in _seeds().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (folder / name).write_bytes(data)
        print(f"{target}: {len(inputs)} seeds, {sum(map(len, inputs.values()))} bytes")
    return 0


def _seeds() -> dict[str, Mapping[str, bytes]]:
    return {
        "images": {name: b"\0" + data for name, data in _images().items()} | {"whole": b"\1" + image_bytes(_picture())},
        "files": _files(),
        "rest": _rest(),
        "http": _http(),
        "rpc": _rpc(),
        "keys": _keys(),
        "stream": _stream(),
    }


def _picture(mode: str = "RGB") -> Image.Image:
    picture = Image.linear_gradient("L").resize(_SIZE)
    return picture.convert(mode)


def _file(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _images() -> dict[str, bytes]:
    """A tiny file of each format, and of each way in which a format holds pixels."""
    turned = Image.Exif()
    turned[0x0112] = 6
    found = {kind.lower(): _file(_picture(), kind) for kind in ("PNG", "JPEG", "WEBP", "AVIF")}
    return (
        found
        | {
            "png-16-bit": _file(Image.new("I;16", _SIZE, 40000), "PNG"),
            "png-palette": _file(_picture("P"), "PNG", transparency=0),
            "png-alpha": _file(_picture("RGBA"), "PNG"),
            "png-1-bit": _file(_picture("1"), "PNG"),
            "png-animated": _file(_picture(), "PNG", save_all=True, append_images=[_picture().rotate(180)]),
            "jpeg-cmyk": _file(_picture("CMYK"), "JPEG"),
            "jpeg-grey-progressive": _file(_picture("L"), "JPEG", progressive=True),
            "jpeg-in-scans": jpeg_in_scans(_picture(), 3),
            "jpeg-turned": _file(_picture(), "JPEG", exif=turned),
            "jpeg-without-end": _file(_picture(), "JPEG")[:-2],
            "webp-lossless-alpha": _file(_picture("RGBA"), "WEBP", lossless=True),
            "webp-animated": _file(_picture(), "WEBP", save_all=True, append_images=[_picture().rotate(180)]),
            "no-image": b"%PDF-1.7",
        }
        | _heics()
    )


def _heics() -> dict[str, bytes]:
    picture, grey = _picture().resize((32, 32)), _picture("L").resize((32, 32))
    tiles = [heic.coded(picture.crop((x, 0, x + 16, 32)), hidden=True) for x in (0, 16)]
    return {
        "heic": heic.heic(heic.coded(picture)),
        "heic-turned-10-bit": heic.heic(heic.coded(picture, heic.irot(1), heic.imir(0), bits=10)),
        "heic-alpha": heic.heic(heic.coded(picture), heic.belongs_to(1, grey, heic.ALPHA)),
        "heic-tiles": heic.heic(heic.grid((2, 1), (32, 32), [2, 3]), *tiles),
    }


def _files() -> dict[str, bytes]:
    texts = {
        "routing": (
            "default: lightweight\nweights:\n  lightweight: 80\n  standard: 20\ncanary:\n  lightweight: 0.05\n"
            "shadow:\n  - from: lightweight\n    to: standard@1\n    share: 0.1\n"
        ),
        "models_config": (
            'model_config_list {\n  config { name: "cpm_lightweight" base_path: "/models" model_platform: "tensorflow"'
            ' model_version_policy { specific { versions: 1 } } version_labels { key: "stable" value: 1 } }\n}\n'
        ),
        "card": json.dumps(
            {
                "name": "cpm_lightweight",
                "variant": "lightweight",
                "version": 1,
                "keypoints": ["wrist"],
                "channels": 22,
                "input_size": 128,
                "stride": 8,
                "metrics": {"pck": 0.5},
            }
        ),
        "settings": (
            "REST_PORT=8000\nBACKEND=embedded\nTFS_ADDRESSES=a:1,b:2\nMAX_WAIT_MS=5\nDEFAULT_MODEL=standard@1\n"
            "DEFAULT_DEADLINE_MS=1e3\nMAX_ROIS=16\nLOG_FORMAT=json\n"
        ),
    }
    return {kind: bytes((files.KINDS.index(kind),)) + text.encode() for kind, text in texts.items()}


def _rest() -> dict[str, bytes]:
    image, batch = range(2)
    whole, chunked, single = range(3)
    png = image_bytes(_picture())
    encoded = base64.b64encode(png)
    one = _part(b'name="image"; filename="../../a.png"', png)
    roi = _part(b'name="roi"', b"0,0,8,6")
    end = b"--b--\r\n"
    document = b'{"image": "%b", "rois": [{"x": 0, "y": 0, "width": 8, "height": 6}]}' % encoded
    uri = b'{"image": "data:image/png;base64,%b"}' % encoded
    kinds = {kind: index for index, kind in enumerate(rest.TYPES)}
    form = kinds["multipart/form-data; boundary=b"]

    def request(
        call: int, kind: int, framing: int, body: bytes, query: bytes = b"", headers: Iterable[tuple[str, bytes]] = ()
    ) -> bytes:
        more = b"".join(bytes((rest.HEADERS.index(name), len(value))) + value for name, value in headers)
        return bytes((call, kind, framing, len(query))) + query + bytes((len(list(headers)),)) + more + body

    headers = [("Accept", b"image/png"), ("X-Model-Variant", b"lightweight@1"), ("X-Request-Timeout-Ms", b"1000")]
    return {
        "raw": request(image, kinds["image/png"], whole, png, b"roi=0,0,8,6&roi=1,1,2,2"),
        "raw-chunked": request(image, kinds[None], single, png, headers=headers),
        "json": request(image, kinds["application/json"], whole, document),
        "json-uri": request(image, kinds["application/json"], chunked, uri, headers=[("X-Client-Id", b"me")]),
        "form": request(image, form, whole, one + roi + end),
        "form-chunked": request(image, form, single, one + end),
        "batch": request(batch, form, whole, one + one + _part(b'name="image"; filename="x"', b"no image") + end),
        "header-injection": request(image, form, whole, _part(b'name="a\rb: c"; filename=x\r\nX: y', png) + end),
        "pdf": request(image, kinds["application/pdf"], whole, b"%PDF-1.7"),
    }


def _part(disposition: bytes, content: bytes) -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + content + b"\r\n"


def _http() -> dict[str, bytes]:
    live = b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n"
    upgrade = (
        b"GET /v1/hand-pose/stream HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n\x82\x80\0\0\0\0"
    )
    return {
        "two-calls": live + b"GET /v1/models HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        "head-only": b"HEAD /readyz HTTP/1.0\r\n\r\n",
        "body": b"POST /v1/hand-pose HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc" + live,
        "chunked": b"POST /v1/hand-pose HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        "chunked-for-ever": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\naaaaaaaa",
        "both-lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "expect": b"POST /v1/hand-pose HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
        "options": b"OPTIONS * HTTP/1.1\r\nHost: h\r\nOrigin: http://evil\r\n\r\n",
        "escapes": b"GET /%2e%2e/%00?roi=%ff HTTP/1.1\r\nHost: h\r\nX-Request-Id: a\tb\r\n\r\n",
        "upgrade": upgrade,
        "page": b"GET / HTTP/1.1\r\nHost: h\r\nIf-None-Match: *\r\nRange: bytes=0-\r\n\r\n",
        "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "tls": b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
    }


def _rpc() -> dict[str, bytes]:
    png = image_bytes(_picture())
    wire, made = b"\0", b"\1"
    no_metadata = b"\0"
    estimate = pb.EstimateRequest(image=png, rois=[pb.Box(x=0, y=0, width=8, height=6)])
    frames = [
        pb.EstimateStreamRequest(options=pb.StreamOptions(smoothing=pb.OneEuro(beta=1.0))),
        pb.EstimateStreamRequest(frame=pb.Frame(image=png, id=1, time_s=0.5)),
    ]
    variant = bytes((1, rpc.KEYS.index("x-model-variant"), 8)) + b"standard"
    infinite = struct.pack("<d", float("inf"))
    return {
        "estimate": bytes((0,)) + no_metadata + wire + estimate.SerializeToString(),
        "estimate-named": bytes((0,)) + variant + wire + estimate.SerializeToString(),
        "batch": bytes((1,))
        + no_metadata
        + wire
        + pb.EstimateBatchRequest(requests=[estimate] * 2).SerializeToString(),
        "stream": bytes((2,))
        + no_metadata
        + wire
        + b"".join(bytes((len(text),)) + text for text in (each.SerializeToString() for each in frames)),
        "models": bytes((3,)) + no_metadata + wire,
        "health": bytes((4,)) + no_metadata + wire + b"\x0a\x00",
        "reflection": bytes((5,)) + no_metadata + wire + bytes((2,)) + b"\x3a\x00",
        "made-estimate": bytes((0,)) + no_metadata + made + bytes((1, 1, 0)) + infinite + bytes((1, 2, 1, 3, 1, 4)),
        "made-stream": bytes((2,))
        + no_metadata
        + made
        + bytes((1, 1, 0, 1, 0))
        + infinite
        + bytes(8)
        + bytes((1, 1, 0)),
    }


def _keys() -> dict[str, bytes]:
    file = "- name: kiosk\n  sha256: %s\n  expires: 2027-11-22T00:00:00+00:00\n  images_per_second: 20\n  burst: 60\n"
    guess = b"Bearer hpk_" + b"a" * 43
    shown = bytes((0, 0, len(guess))) + guess
    protocol = b"handpose.v1, handpose.key.hpk_" + b"a" * 43
    contents = {
        "file": (file % ("ab" * 32)).encode() + (file % ("cd" * 32)).replace("kiosk", "desk").encode(),
        "doorkeeper": bytes((9,)) + b"192.0.2.1" + guess,
        "rest": shown,
        "rpc": guess,
        "stream": bytes((0, 1, len(protocol))) + protocol,
    }
    return {door: bytes((keys.DOORS.index(door),)) + content for door, content in contents.items()}


def _stream() -> dict[str, bytes]:
    text, binary, image, description, ping, parts, raw = range(7)
    no_options = b"\0"
    smoothing = bytes((1, stream.OPTIONS.index("smoothing"), 2)) + b"on"
    said = b'{"id": 7, "time_s": 1.5, "rois": [{"x": 0, "y": 0, "width": 8, "height": 8}]}'
    return {
        "frames": no_options + bytes((image, image, image)),
        "smoothed": smoothing + bytes((image, image)),
        "described": no_options + bytes((text, len(said))) + said + bytes((image,)),
        "no-image": no_options + bytes((binary, 3)) + b"abc" + bytes((image,)),
        "values": no_options + bytes((description, 1, 2, 3, 1, 2, 3, 1)) + bytes(16),
        "ping": no_options + bytes((ping, 2)) + b"hi" + bytes((image,)),
        "parts": no_options + bytes((parts, 2)) + b"ab" + bytes((2,)) + b"cd",
        "broken-frame": no_options + bytes((raw, 0, 2)) + b"\xff\xff",
        "leaves": no_options + bytes((image, raw, 1)) + b"\x82\xff\0\0",
    }


if __name__ == "__main__":
    sys.exit(main())
