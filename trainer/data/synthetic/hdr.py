"""Reading Radiance .hdr panoramas (RGBE, run-length coded or flat) into linear RGB. Writing is not needed."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.errors import RefusedError

Floats = npt.NDArray[np.float32]


class HdrError(RefusedError):
    """A file that is no readable Radiance picture; the message names the file and the reason."""


def read_hdr(path: Path) -> Floats:
    """Linear RGB [H, W, 3], row 0 at the top. Raises HdrError."""
    data = path.read_bytes()
    if not data.startswith((b"#?RADIANCE", b"#?RGBE")):
        raise HdrError(f"{path}: not a Radiance picture (it starts with {data[:10]!r})")
    end = data.find(b"\n\n")
    line_end = data.find(b"\n", end + 2)
    if end < 0 or line_end < 0:
        raise HdrError(f"{path}: the header does not end")
    if b"32-bit_rle_rgbe" not in data[:end]:
        raise HdrError(f"{path}: only FORMAT=32-bit_rle_rgbe is read")
    words = data[end + 2 : line_end].split()
    if len(words) != 4 or words[0] != b"-Y" or words[2] != b"+X" or not (words[1].isdigit() and words[3].isdigit()):
        raise HdrError(f"{path}: only '-Y height +X width' pictures are read")
    height, width = int(words[1]), int(words[3])
    if not (0 < height <= 16384 and 0 < width <= 32768):
        raise HdrError(f"{path}: {width}x{height} is not a size this reader takes")
    body = data[line_end + 1 :]
    flat = not (8 <= width < 32768 and body[:2] == b"\x02\x02")
    try:
        rgbe = _flat(body, height, width) if flat else _rows(body, height, width)
    except (IndexError, ValueError) as error:
        raise HdrError(f"{path}: the picture data is cut short or damaged") from error
    scale = np.ldexp(np.float32(1.0), rgbe[..., 3].astype(np.int32) - 136)
    return (rgbe[..., :3].astype(np.float32) * scale[..., None] * (rgbe[..., 3:] > 0)).astype(np.float32)


def _flat(body: bytes, height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(body, np.uint8, height * width * 4).reshape(height, width, 4)


def _rows(body: bytes, height: int, width: int) -> npt.NDArray[np.uint8]:
    out = np.empty((height, 4, width), np.uint8)
    at = 0
    for row in range(height):
        if body[at : at + 2] != b"\x02\x02" or body[at + 2] * 256 + body[at + 3] != width:
            raise ValueError("row header")
        at += 4
        for channel in range(4):
            filled = 0
            while filled < width:
                count = body[at]
                run = count > 128
                count = count - 128 if run else count
                if count == 0 or filled + count > width:
                    raise ValueError("run length")
                if run:
                    out[row, channel, filled : filled + count] = body[at + 1]
                    at += 2
                else:
                    chunk = body[at + 1 : at + 1 + count]
                    out[row, channel, filled : filled + count] = np.frombuffer(chunk, np.uint8)
                    at += 1 + count
                filled += count
    return out.transpose(0, 2, 1)
