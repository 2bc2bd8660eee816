"""What a 12-megapixel photo costs on its way to the model, decoded at the size needed, over what it costs in full.

    python -m benchmarks.decoding

Both ways by turns in one process, so that a busy machine slows both; the ratio of the medians counts, not the times.
"""

import argparse
import io
import statistics
import sys
import time

import numpy as np
from PIL import Image

from service.pose.geometry import Box
from service.pose.images import decode_image
from service.pose.preprocessing import crop


def photo(width: int = 4032, height: int = 3024, *, progressive: bool = False) -> bytes:
    """A JPEG with as much detail as photos have: noise on several scales."""
    random = np.random.default_rng(0)
    layers = [
        np.asarray(
            Image.fromarray(random.integers(0, 256, (height // scale, width // scale, 3), np.uint8)).resize(
                (width, height), Image.Resampling.BILINEAR
            ),
            np.float32,
        )
        for scale in (4, 16, 64, 256)
    ]
    buffer = io.BytesIO()
    mean = np.mean(layers, axis=0).astype(np.uint8)
    Image.fromarray(mean).save(buffer, "JPEG", quality=90, progressive=progressive)
    return buffer.getvalue()


def ratio(data: bytes, side: int, rounds: int) -> float:
    """Median processor time of decoding and cropping to side x side pixels, with scaled decoding over without."""
    reduced: list[float] = []
    full: list[float] = []
    for _ in range(rounds):
        for times, enough in ((reduced, side), (full, None)):
            started = time.process_time()
            image = decode_image(data, enough_pixels=enough)
            crop(image, Box(0, 0, image.width, image.height), (side, side))
            times.append(time.process_time() - started)
    return statistics.median(reduced) / statistics.median(full)


def main() -> int:
    """Print the ratios; the exit code tells whether the baseline photo's is below a half."""
    parser = argparse.ArgumentParser(description="Cost of decoding at the scale that the model needs.")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    baseline = 1.0
    for progressive in (False, True):
        data = photo(progressive=progressive)
        for enough in (256, 512, 1024):
            found = ratio(data, enough, arguments.rounds)
            kind = "progressive" if progressive else "baseline"
            print(f"{kind:12} {len(data) / 1e6:4.1f} MB, to {enough} x {enough}: {found:.2f} of what it costs in full")
            if not progressive and enough == 256:
                baseline = found
    return 0 if baseline < 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
