"""Which convention a set's labels follow: where on the hand each of the 21 keypoints lies.

Version 2 is the current one: keypoints lie where people (and MediaPipe's model) put them on photos. Version 1 is that
of sets rendered by earlier versions of `synth`: wrist, thumb_cmc and thumb_mcp at the centres of the rig's joints.
Taught together, the two would contradict each other in 3 of 21 keypoints, so only the current version is read.
docs/synthetic-data.md says where each keypoint lies.

A set states its version in `info.label_convention` of its COCO file. A file without one is of version 1 if `synth`
wrote it and of the current version, that of photos, if not.
"""

from pathlib import Path
from typing import Any, Final

from trainer.data.sample import DataError

CURRENT: Final = 2
_OF_RENDERED_SETS_WITHOUT_VERSION: Final = 1


def label_convention(document: dict[str, Any], file: Path) -> int:
    """The version that a COCO document states or implies. DataError if what it states is no version."""
    info = document.get("info")
    info = info if isinstance(info, dict) else {}
    version = info.get("label_convention")
    if version is None:
        # `synth` alone writes its settings into `info`.
        return _OF_RENDERED_SETS_WITHOUT_VERSION if isinstance(info.get("settings"), dict) else CURRENT
    if type(version) is not int:
        raise DataError(f"{file}: info.label_convention is a whole number, got {version!r}")
    return version


def check_label_convention(document: dict[str, Any], file: Path) -> None:
    """Refuses a set of another convention than the current one, with a DataError that names both versions."""
    version = label_convention(document, file)
    if version != CURRENT:
        raise DataError(
            f"{file}: its labels follow convention {version}, this trainer's follow convention {CURRENT}, and the two"
            " put wrist and thumb in different places; render the set again with `python -m trainer synth`, into"
            " another folder"
        )
