"""A worker writes for each picture what the API answers, and a problem for each that is bad."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet
import pytest
from pydantic import BaseModel

from service.bootstrap import StartError
from service.offline.attempts import ShardAttempts
from service.offline.job import Job
from service.offline.records import SCHEMA, Format
from service.offline.storage import Place
from service.offline.worker import ShardError, ShardWorker
from service.rest.schemas import HandPose, Problem
from service.settings import Settings
from tests.support.backend import hand_where_crop_is_marked
from tests.support.offline import Model
from tests.support.running_service import Service

Start = Callable[..., tuple[ShardWorker, list[dict[str, Any]]]]


@pytest.fixture
def start(tmp_path: Path, settings: Settings) -> Iterator[Start]:
    """Begins a job with one shard; the worker for it, and its rows."""
    workers: list[ShardWorker] = []

    def begin(folder: Path, form: Format = "jsonl") -> tuple[ShardWorker, list[dict[str, Any]]]:
        job = Job.begin(str(folder), str(tmp_path / "out"), settings, model="lightweight@1", form=form, whole=True)
        rows = [{"shard": each.number, "first": each.first, "images": list(each.images)} for each in job.shards]
        workers.append(ShardWorker(job.work, Model(tmp_path), pause_s=0.0))
        return workers[0], rows

    yield begin
    for worker in workers:
        worker.close()


def records(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out" / "part-000000.jsonl").read_text().splitlines()]


def test_a_worker_without_models_does_not_start(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings
) -> None:
    job = Job.begin(str(pictures(1)), str(tmp_path / "out"), settings, model="lightweight@1", form="jsonl")
    nowhere = replace(job.work, settings=settings.model_copy(update={"model_repo": tmp_path / "nowhere"}))

    with pytest.raises(StartError, match="nowhere"):
        ShardWorker(nowhere, Model(tmp_path))


def test_records_hold_what_the_api_answers(
    pictures: Callable[[int], Path], start: Start, tmp_path: Path, service: Service
) -> None:
    service.do(lambda gateway: setattr(gateway.backend, "answer", hand_where_crop_is_marked))
    folder = pictures(9)
    worker, (row,) = start(folder)

    report = worker(row)

    assert (report["images"], report["failed"]) == (9, [])
    assert len(records(tmp_path)) == 9
    for record in records(tmp_path):
        answer = httpx.post(
            f"{service.urls['rest']}/v1/hand-pose",
            content=(folder / record["image"]).read_bytes(),
            params={"whole": "true"},
            headers={"Content-Type": "image/png", "X-Model-Variant": "lightweight"},
        ).json()
        its_own = {"request_id", "timings_ms"}
        of_both = [
            {key: value for key, value in each.items() if key not in its_own} for each in (record["result"], answer)
        ]
        assert of_both[0] == of_both[1]
        assert record["result"].keys() == answer.keys()


def test_a_bad_picture_gets_a_problem_and_the_others_their_keypoints(
    pictures: Callable[[int], Path], start: Start, tmp_path: Path
) -> None:
    folder = pictures(5)
    (folder / "001.png").write_bytes(b"no picture")
    (folder / "002.png").write_bytes((folder / "000.png").read_bytes()[:60])
    worker, (row,) = start(folder)
    (folder / "003.png").unlink()

    report = worker(row)

    assert report["failed"] == ["unsupported_image_format", "undecodable_image", "unreadable_file"]
    assert [(each["image"], each["status"]) for each in records(tmp_path)] == [
        ("000.png", 200),
        ("001.png", 415),
        ("002.png", 422),
        ("003.png", 404),
        ("004.png", 200),
    ]
    assert all(("result" in each) != ("problem" in each) for each in records(tmp_path))


def test_parquet_holds_the_same_records(pictures: Callable[[int], Path], start: Start, tmp_path: Path) -> None:
    folder = pictures(3)
    (folder / "001.png").write_bytes(b"no picture")
    worker, (row,) = start(folder, "parquet")

    worker(row)

    table = pyarrow.parquet.read_table(tmp_path / "out" / "part-000000.parquet")
    assert table.schema == SCHEMA
    first, second, third = table.to_pylist()
    assert [(each["image"], each["status"]) for each in (first, second, third)] == [
        ("000.png", 200),
        ("001.png", 415),
        ("002.png", 200),
    ]
    assert [point["name"] for point in first["result"]["hands"][0]["keypoints"]][:2] == ["wrist", "thumb_cmc"]
    assert second["problem"]["code"] == "unsupported_image_format"


@pytest.mark.parametrize(("kind", "schema"), [("result", HandPose), ("problem", Problem)])
def test_parquet_has_the_fields_of_the_api(kind: str, schema: type[BaseModel]) -> None:
    assert names_of(SCHEMA.field(kind).type) == names_in(schema.model_json_schema())


def names_of(kind: pa.DataType) -> Any:
    """Names of a type's members, and of theirs."""
    if pa.types.is_list(kind):
        return names_of(kind.value_type)
    return {each.name: names_of(each.type) for each in kind} if pa.types.is_struct(kind) else None


def names_in(schema: dict[str, Any], defs: dict[str, Any] | None = None) -> Any:
    """The same of a JSON Schema; of what may be null, too."""
    defs = schema.get("$defs", {}) if defs is None else defs
    if "$ref" in schema:
        return names_in(defs[schema["$ref"].rpartition("/")[2]], defs)
    if "anyOf" in schema:
        return names_in(schema["anyOf"][0], defs)
    if "items" in schema:
        return names_in(schema["items"], defs)
    properties = schema.get("properties")
    return None if properties is None else {name: names_in(each, defs) for name, each in properties.items()}


def test_a_shard_of_nothing_but_failures_of_our_own_is_not_written(
    pictures: Callable[[int], Path], start: Start, tmp_path: Path
) -> None:
    folder = pictures(2)
    worker, (row,) = start(folder)
    for path in folder.iterdir():
        path.unlink()
        path.mkdir()  # there, and cannot be read

    with pytest.raises(ShardError, match="unreadable_file"):
        worker(row)

    assert not (tmp_path / "out" / "part-000000.jsonl").exists()


def test_a_picture_that_kills_its_process_gets_a_problem(
    pictures: Callable[[int], Path], start: Start, tmp_path: Path
) -> None:
    worker, (row,) = start(pictures(3))
    output = Place.at(str(tmp_path / "out"))
    for _ in range(3):
        assert not ShardAttempts(output, "part-000000.jsonl").one_by_one  # and the process dies
    for _ in range(2):
        later = ShardAttempts(output, "part-000000.jsonl")
        assert later.one_by_one
        later.begin_image("001.png")  # and the process dies

    assert worker(row)["failed"] == ["killed_worker"]
    assert [each["status"] for each in records(tmp_path)] == [200, 500, 200]
    assert not list((tmp_path / "out" / "_temporary").iterdir())


def test_a_picture_that_was_looked_at_when_the_job_was_stopped_is_not_blamed(
    pictures: Callable[[int], Path], start: Start, tmp_path: Path
) -> None:
    worker, (row,) = start(pictures(3))
    output = Place.at(str(tmp_path / "out"))
    for _ in range(4):
        stopped = ShardAttempts(output, "part-000000.jsonl")
    stopped.begin_image("001.png")

    assert worker(row)["failed"] == []


def test_a_shard_that_ends_with_an_error_does_not_count_as_a_death(
    pictures: Callable[[int], Path], start: Start, tmp_path: Path
) -> None:
    folder = pictures(2)
    worker, (row,) = start(folder)
    for path in folder.iterdir():
        path.unlink()
        path.mkdir()  # there, and cannot be read
    for _ in range(6):
        with pytest.raises(ShardError):
            worker(row)

    attempts = ShardAttempts(Place.at(str(tmp_path / "out")), "part-000000.jsonl")
    assert not attempts.one_by_one
    assert attempts.fatal == frozenset()


def test_a_single_picture_that_cannot_be_read_gets_its_problem(
    pictures: Callable[[int], Path], start: Start, tmp_path: Path
) -> None:
    folder = pictures(1)
    worker, (row,) = start(folder)
    (folder / "000.png").unlink()
    (folder / "000.png").mkdir()  # there, and cannot be read

    assert worker(row)["failed"] == ["unreadable_file"]
    assert [each["status"] for each in records(tmp_path)] == [503]


def test_a_single_picture_of_a_store_that_is_away_is_tried_again_later(
    pictures: Callable[[int], Path], start: Start, tmp_path: Path
) -> None:
    folder = pictures(1)
    worker, (row,) = start(folder)
    folder.rename(tmp_path / "elsewhere")
    folder.write_bytes(b"where the folder was")

    with pytest.raises(ShardError, match="cannot be listed"):
        worker(row)
    assert not (tmp_path / "out" / "part-000000.jsonl").exists()
