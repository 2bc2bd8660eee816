from pathlib import Path

import numpy as np
import pytest

from trainer.data.synthetic.hdr import HdrError, read_hdr

HEADER = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 2 +X 8\n"
# 128, 64, 32 at exponent 129: mantissa / 256 * 2^(129 - 128)
PIXEL = bytes([128, 64, 32, 129])
COLOUR = [1.0, 0.5, 0.25]


def run_length_rows(rows: int) -> bytes:
    row = bytes([2, 2, 0, 8])
    for value in PIXEL:
        # Half as a run, half spelled out.
        row += bytes([128 + 4, value]) + bytes([4, *[value] * 4])
    return row * rows


def test_run_length_coded_picture_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sky.hdr"
    path.write_bytes(HEADER + run_length_rows(2))

    assert read_hdr(path).shape == (2, 8, 3)
    assert read_hdr(path)[1, 7] == pytest.approx(COLOUR)


def test_flat_picture_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sky.hdr"
    path.write_bytes(HEADER + PIXEL * 15 + bytes(4))
    picture = read_hdr(path)

    assert picture[0, 0] == pytest.approx(COLOUR)
    assert picture[1, 7].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GIF89a", "not a Radiance picture"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe", "header does not end"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_xyze\n\n-Y 2 +X 8\n", "only FORMAT=32-bit_rle_rgbe"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n+Y 2 +X 8\n", "'-Y height"),
        (HEADER + run_length_rows(1), "cut short"),
        (HEADER + bytes([2, 2, 0, 8, 0]) * 9, "cut short"),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 99999 +X 8\n", "not a size"),
    ],
)
def test_damaged_picture_is_refused_with_file_and_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "sky.hdr"
    path.write_bytes(data)

    with pytest.raises(HdrError, match=rf"sky\.hdr: .*{reason}"):
        read_hdr(path)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_pixels_survive(tmp_path: Path, seed: int) -> None:
    rgbe = np.random.default_rng(seed).integers(1, 255, (2, 8, 4)).astype(np.uint8)
    rgbe[..., 3] = 120 + rgbe[..., 3] % 16
    rgbe[0, 0, 0] = 3  # not the mark of a run-length row
    path = tmp_path / "sky.hdr"
    path.write_bytes(HEADER + rgbe.tobytes())
    expected = rgbe[..., :3] / 256.0 * 2.0 ** (rgbe[..., 3:].astype(float) - 128)

    assert np.abs(read_hdr(path) - expected).max() < 1e-6
