"""A job is written down once, cut into shards, and gone on with only as what it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.inference.errors import UnknownModelError
from service.offline.job import Job, JobError, pinned
from service.settings import Settings
from tests.support.servables import write_card


def begin(source: Path, target: Path, settings: Settings, **changes: Any) -> Job:
    asked: dict[str, Any] = {"model": "lightweight@1", "form": "jsonl", "shard_size": 4} | changes
    return Job.begin(str(source), str(target), settings, **asked)


def test_every_picture_is_in_exactly_one_shard(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings
) -> None:
    job = begin(pictures(10), tmp_path / "out", settings)

    assert [shard.first for shard in job.shards] == [0, 4, 8]
    assert [name for shard in job.shards for name in shard.images] == [f"{index:03}.png" for index in range(10)]
    assert (job.to_do, job.images_done) == (job.shards, 0)


def test_a_job_goes_on_with_the_shards_that_are_not_there(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings
) -> None:
    folder, target = pictures(10), tmp_path / "out"
    first = begin(folder, target, settings)
    (target / first.work.file_name(1)).write_text("done")
    (folder / "000.png").unlink()  # what happens to the pictures meanwhile moves nothing
    (folder / "extra.png").write_bytes(b"later")

    again = begin(folder, target, settings, shard_size=None)

    assert again.shards == first.shards
    assert [shard.number for shard in again.to_do] == [0, 2]
    assert again.images_done == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "standard@1"},
        {"form": "parquet"},
        {"shard_size": 5},
        {"max_hands": 1},
        {"min_score": 0.0},
        {"whole": True},
    ],
    ids=lambda each: next(iter(each)),
)
def test_another_job_in_the_same_place_is_refused_by_what_differs(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings, changes: dict[str, Any]
) -> None:
    folder = pictures(1)
    begin(folder, tmp_path / "out", settings)

    with pytest.raises(JobError, match=next(iter(changes))):
        begin(folder, tmp_path / "out", settings, **changes)


def test_what_is_not_said_of_the_hands_to_look_for_is_as_the_job_has_it(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings
) -> None:
    folder = pictures(1)
    begin(folder, tmp_path / "out", settings, max_hands=2, min_score=0.25)

    about = begin(folder, tmp_path / "out", settings).work.description

    assert (about.max_hands, about.min_score, about.whole) == (2, 0.25, False)


def test_a_job_of_an_earlier_version_is_refused(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings
) -> None:
    folder, description = pictures(1), tmp_path / "out" / "_job.json"
    begin(folder, tmp_path / "out", settings)
    description.write_text(description.read_text().replace('"layout": 2', '"layout": 1'))

    with pytest.raises(JobError, match="of another version"):
        begin(folder, tmp_path / "out", settings)


def test_a_folder_of_something_else_is_left_alone(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()

    with pytest.raises(JobError, match="of no job"):
        begin(pictures(1), tmp_path / "out", settings)


def test_a_job_that_was_killed_while_it_was_written_down_begins_anew(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings
) -> None:
    folder, target = pictures(5), tmp_path / "out"
    begin(folder, target, settings)
    (target / "_job.json").unlink()

    assert [shard.first for shard in begin(folder, target, settings).to_do] == [0, 4]


def test_every_visible_file_is_in_the_job_whatever_its_name(tmp_path: Path, settings: Settings) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.HEIC", "b.jfif", "c", "d.txt", ".DS_Store"):
        (folder / name).write_bytes(b"content")

    job = begin(folder, tmp_path / "out", settings)

    assert job.shards[0].images == ("a.HEIC", "b.jfif", "c", "d.txt")
    assert job.left_out == (".DS_Store",)


def test_no_pictures_are_no_job(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(JobError, match="no file"):
        begin(tmp_path / "empty", tmp_path / "out", settings)


def test_a_description_that_is_broken_is_named(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings
) -> None:
    folder = pictures(1)
    begin(folder, tmp_path / "out", settings)
    (tmp_path / "out" / "_job.json").write_text("{")

    with pytest.raises(JobError, match=r"_job\.json"):
        begin(folder, tmp_path / "out", settings)


@pytest.mark.parametrize(
    ("asked", "versions", "expected"),
    [
        ("lightweight", 1, "lightweight@2"),
        ("lightweight@stable", 1, "lightweight@2"),
        ("lightweight@1", 2, "lightweight@1"),
        ("standard", 1, "standard@1"),
    ],
)
def test_a_job_names_the_version_that_is_there_when_it_begins(
    settings: Settings, asked: str, versions: int, expected: str
) -> None:
    write_card(settings.model_repo, "lightweight", version=2)

    assert pinned(asked, settings.model_copy(update={"versions_in_memory": versions})) == expected


def test_a_version_that_workers_will_not_have_is_refused(settings: Settings) -> None:
    with pytest.raises(UnknownModelError, match="lightweight@1"):
        pinned("lightweight@7", settings)


def test_versions_of_a_model_server_are_its_own_business(settings: Settings) -> None:
    remote = settings.model_copy(update={"backend": "tensorflow_serving"})

    assert pinned("lightweight@canary", remote) == "lightweight@canary"
