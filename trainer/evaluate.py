"""Measures a network on labelled hands, through the crop and the decoding that serving uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.pose.drawing import draw_hand
from service.pose.heatmaps import STRIDE, decode
from trainer import metrics
from trainer.data.pipeline import ImageStore, evaluation_crops, make_crop, to_model_input
from trainer.data.sample import Sample

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Model inputs float32 [N, S, S, 3] to the last stage's belief maps float32 [N, S/8, S/8, 22]."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predictions beside what is true, for N hands.

    Attributes:
        samples: the hands.
        predicted_in_image: float64 [N, 21, 2], continuous pixels of each original picture.
        confidence: float32 [N, 21], peak beliefs.
        distance_px: float64 [N, 21], pixels of the original picture.
        distance_in_input: float64 [N, 21], pixels of the model's input crop.
        sides_px: float64 [N], side of each normalising box in the original picture.
        input_size: side of the model's input in pixels.
    """

    samples: Sequence[Sample]
    predicted_in_image: NDArray[np.float64]
    confidence: NDArray[np.float32]
    distance_px: NDArray[np.float64]
    distance_in_input: NDArray[np.float64]
    sides_px: NDArray[np.float64]
    input_size: int

    @property
    def labelled(self) -> NDArray[np.bool_]:
        return np.stack([sample.labelled for sample in self.samples])

    @property
    def visible(self) -> NDArray[np.bool_]:
        return np.stack([sample.visible & sample.labelled for sample in self.samples])

    def subset(self, chosen: NDArray[np.bool_]) -> Evaluation:
        """The same evaluation of the chosen samples only; chosen: bool [N]."""
        return Evaluation(
            samples=[sample for sample, keep in zip(self.samples, chosen.tolist(), strict=True) if keep],
            predicted_in_image=self.predicted_in_image[chosen],
            confidence=self.confidence[chosen],
            distance_px=self.distance_px[chosen],
            distance_in_input=self.distance_in_input[chosen],
            sides_px=self.sides_px[chosen],
            input_size=self.input_size,
        )

    def scores(self, chosen: NDArray[np.bool_] | None = None) -> metrics.Scores:
        """All figures over every labelled keypoint, or over those that `chosen` [N, 21] picks among them."""
        counted = self.labelled if chosen is None else self.labelled & chosen
        return metrics.score(self.distance_px, self.sides_px, counted)


def evaluate_samples(
    predict: Predict, samples: Sequence[Sample], store: ImageStore, input_size: int, *, batch_size: int = 32
) -> Evaluation:
    """Runs the network on serving's crop of every sample and compares, boxes taken from the labels."""
    predicted, confidences, in_input = [], [], []
    for group, crops in evaluation_crops(samples, store, input_size, batch_size):
        decoded = decode(predict(to_model_input(np.stack([crop.pixels for crop in crops]))))
        for sample, crop, in_heatmap, confidence in zip(group, crops, decoded.in_heatmap, decoded.scores, strict=True):
            keypoints_in_input = in_heatmap.astype(np.float64) * STRIDE
            keypoints_in_image = crop.image_to_input.inverse().apply(keypoints_in_input)
            predicted.append(keypoints_in_image)
            confidences.append(confidence)
            in_input.append(
                metrics.distances(keypoints_in_image, sample.keypoints_in_image) * crop.image_to_input.scale
            )
    true = np.stack([sample.keypoints_in_image for sample in samples])
    return Evaluation(
        samples=samples,
        predicted_in_image=np.stack(predicted),
        confidence=np.stack(confidences),
        distance_px=metrics.distances(np.stack(predicted), true),
        distance_in_input=np.stack(in_input),
        sides_px=np.array([metrics.normalising_side(sample.box_in_image) for sample in samples]),
        input_size=input_size,
    )


def contact_sheet(
    evaluation: Evaluation, store: ImageStore, indices: Sequence[int], *, columns: int = 8, side: int = 160
) -> Image.Image:
    """Predictions drawn on the crops of the chosen samples, left to right, top to bottom."""
    rows = -(-len(indices) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    unused = np.random.default_rng(0)
    for place, index in enumerate(indices):
        crop = make_crop(evaluation.samples[index], store, side // STRIDE * STRIDE, unused)
        keypoints_in_crop = crop.image_to_input.apply(evaluation.predicted_in_image[index])
        drawn = draw_hand(Image.fromarray(crop.pixels), keypoints_in_crop, evaluation.confidence[index])
        sheet.paste(drawn, (place % columns * side, place // columns * side))
    return sheet
