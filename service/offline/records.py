"""What a job writes for each picture: the JSON answer of the API, or the problem; one record a picture, in every case.

The answer is made by `service.rest.rendering`, so it cannot differ from what REST says. Two forms of a shard: JSON
lines, and Parquet with the same fields, its schema read off the same classes.
"""

import types
from collections.abc import Sequence
from io import BytesIO
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet
from pydantic import BaseModel, Field

from service.inference.errors import ServiceError
from service.inference.estimates import Estimate
from service.rest.problems import HttpError, http_problem, problem_of
from service.rest.rendering import hand_pose
from service.rest.schemas import HandPose, Problem, Schema

KILLED_WORKER: Final = "killed_worker"

Format = Literal["jsonl", "parquet"]

_ARROW: Final[dict[type, pa.DataType]] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


class Record(Schema):
    """What became of one picture of a job: either a result or a problem."""

    image: Annotated[str, Field(description="name of the picture, relative to the job's input")]
    status: Annotated[int, Field(description="the HTTP status that the picture would have got from the service")]
    result: HandPose | None = None
    problem: Problem | None = None


def answered(image: str, request_id: str, estimate: Estimate) -> Record:
    """The record of a picture with its keypoints."""
    return Record(image=image, status=200, result=hand_pose(estimate, request_id))


def refused(image: str, request_id: str, error: ServiceError) -> Record:
    """The record of a picture that the service could not answer for."""
    problem = problem_of(error, instance=image, request_id=request_id)
    return Record(image=image, status=problem.status, problem=problem)


def fatal(image: str, request_id: str) -> Record:
    """The record of a picture that killed the process that looked at it."""
    problem = http_problem(
        HttpError(500, KILLED_WORKER, "the process that worked on this picture was killed"),
        instance=image,
        request_id=request_id,
    )
    return Record(image=image, status=500, problem=problem)


def unreadable(image: str, request_id: str, error: OSError) -> Record:
    """The record of a picture that could not be read from its store."""
    status = 404 if isinstance(error, FileNotFoundError) else 503
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    problem = http_problem(
        HttpError(status, "unreadable_file", f"the picture cannot be read: {detail}"),
        instance=image,
        request_id=request_id,
    )
    return Record(image=image, status=status, problem=problem)


def encode(records: Sequence[Record], form: Format) -> bytes:
    """A shard's file."""
    if form == "jsonl":
        return "".join(f"{record.model_dump_json(exclude_unset=True)}\n" for record in records).encode()
    table = pa.Table.from_pylist([record.model_dump(mode="json") for record in records], schema=arrow_schema())
    buffer = BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def arrow_schema() -> pa.Schema:
    """The records' schema as Parquet holds it, the same for every shard."""
    return pa.schema([(name, _arrow_type(field.annotation)) for name, field in Record.model_fields.items()])


def _arrow_type(annotation: Any) -> pa.DataType:
    """The Arrow type of a field of one of the schemas."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _arrow_type(arguments[0])
    if origin in {Union, types.UnionType}:
        (of_value,) = (each for each in arguments if each is not type(None))
        return _arrow_type(of_value)
    if origin is list:
        return pa.list_(_arrow_type(arguments[0]))
    if origin is Literal:
        return _ARROW[type(arguments[0])]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pa.struct([(name, _arrow_type(field.annotation)) for name, field in annotation.model_fields.items()])
    return _ARROW[annotation]
