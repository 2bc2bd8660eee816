"""Kinds of hands to report on one by one: by data set, people, view, extended fingers, size in the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trainer.data.sample import Sample

_CLOSED, _OPEN = "closed (0 or 1 extended)", "open (4 or 5 extended)"
_FINGERS: Final = (_CLOSED, _CLOSED, "between (2 or 3 extended)", "between (2 or 3 extended)", _OPEN, _OPEN)
_SIZES: Final = ((0.25, "under 1/4 of the picture"), (0.5, "1/4 to 1/2"), (np.inf, "over 1/2"))


def breakdown(
    samples: Sequence[Sample], size_in_picture: NDArray[np.float64]
) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Which samples are of which part, bool [N], by name of the kind and of the part.

    A kind that no sample tells of is left out: hands without a `group` are in no part of "group".

    Args:
        samples: N hands.
        size_in_picture: [N], the longer side of the hand's box over that of its picture.
    """
    kinds: dict[str, list[str | None]] = {
        "data_set": [sample.source for sample in samples],
        "group": [sample.group for sample in samples],
        "view": [sample.view for sample in samples],
        "fingers": [None if s.extended is None else _FINGERS[min(max(s.extended, 0), 5)] for s in samples],
        "size": [next(name for limit, name in _SIZES if size < limit) for size in size_in_picture],
    }
    return {
        kind: {name: np.array([of == name for of in parts]) for name in sorted({of for of in parts if of is not None})}
        for kind, parts in kinds.items()
        if any(of is not None for of in parts)
    }


def cluster_of(sample: Sample) -> str:
    """What standard errors take for independent: the group of people, or the picture where no group is told."""
    return f"group {sample.source}/{sample.group}" if sample.group else f"picture {sample.image_path}"
