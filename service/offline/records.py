"""What a job writes for each picture: the JSON answer of the API, or the problem; one record a picture, in every case.

Two forms of a file of records: JSON lines, and Parquet with the same fields.
"""

import json
from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet

from service.answers import error_values, estimate_values, problem_values
from service.inference.errors import ServiceError
from service.inference.estimates import Estimate

Format = Literal["jsonl", "parquet"]


Record = dict[str, Any]
"""image: name relative to the job's input; status: as HTTP has it; then result, or problem as in RFC 9457."""


def answered(image: str, request_id: str, estimate: Estimate) -> Record:
    """The record of a picture with the keypoints of its hands, of which there may be none."""
    return {"image": image, "status": 200, "result": estimate_values(estimate, request_id)}


def refused(image: str, request_id: str, error: ServiceError) -> Record:
    """The record of a picture that the service could not answer for."""
    problem = error_values(error, instance=image, request_id=request_id)
    return {"image": image, "status": problem["status"], "problem": problem}


def failed(image: str, request_id: str, status: int, code: str, detail: str) -> Record:
    """The record of a picture that failed outside the service."""
    problem = problem_values(status, code, detail, instance=image, request_id=request_id)
    return {"image": image, "status": status, "problem": problem}


def encode(records: Sequence[Record], form: Format) -> bytes:
    """The records' file."""
    if form == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False) for row in records)
        return "".join(f"{line}\n" for line in lines).encode()
    buffer = BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(records), schema=SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()


def _struct(**members: pa.DataType) -> pa.DataType:
    return pa.struct(list(members.items()))


_BOX = _struct(x=_REAL, y=_REAL, width=_REAL, height=_REAL)
_KEYPOINT = _struct(id=_WHOLE, name=_TEXT, x=_REAL, y=_REAL, x_norm=_REAL, y_norm=_REAL, score=_REAL, sigma=_REAL)
_HAND = _struct(
    score=_REAL,
    handedness=_struct(label=_TEXT, score=_REAL),
    box=_BOX,
    rotation_degrees=_REAL,
    keypoints=pa.list_(_KEYPOINT),
)
_RESULT = _struct(
    request_id=_TEXT,
    model=_struct(name=_TEXT, variant=_TEXT, version=_WHOLE, label=_TEXT, routed_by=_TEXT),
    image=_struct(width=_WHOLE, height=_WHOLE),
    hands=pa.list_(_HAND),
    timings_ms=_struct(decode=_REAL, detection=_REAL, queue=_REAL, inference=_REAL, postprocess=_REAL, total=_REAL),
)
_PROBLEM = _struct(
    type=_TEXT,
    title=_TEXT,
    status=_WHOLE,
    detail=_TEXT,
    instance=_TEXT,
    code=_TEXT,
    request_id=_TEXT,
    retry_after_ms=_WHOLE,
    errors=pa.list_(_struct(field=_TEXT, message=_TEXT)),
)
SCHEMA: Final = pa.schema({"image": _TEXT, "status": _WHOLE, "result": _RESULT, "problem": _PROBLEM})
"""The records' schema in Parquet, the same for every file of a job."""
