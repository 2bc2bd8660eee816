"""On Ray: a killed worker loses no picture and repeats none, a stopped job goes on."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.offline import engine
from service.offline.job import Job
from service.settings import Settings
from tests.support.images import image_bytes, picture
from tests.support.offline import BLACK, Model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:::ray")]  # of its own code, about its own settings

ONE_WORKER = engine.Workers(number=1, cpus=1)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """Ray on this machine, with one processor core."""
    with engine.cluster(engine.LOCAL, ONE_WORKER):
        yield


def begin(folder: Path, target: Path, settings: Settings) -> Job:
    source, output = str(folder), str(target)
    return Job.begin(source, output, settings, model="lightweight@1", form="jsonl", shard_size=3, whole=True)


def statuses(target: Path) -> list[tuple[str, int]]:
    """Image and status of every record, file by file."""
    lines = [line for path in sorted(target.glob("part-*")) for line in path.read_text().splitlines()]
    return [(record["image"], record["status"]) for record in map(json.loads, lines)]


@pytest.mark.usefixtures("ray_here")
def test_a_worker_that_is_killed_loses_no_picture_and_repeats_none(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings
) -> None:
    folder = pictures(12)
    (folder / "004.png").write_bytes(image_bytes(picture(60, 60, BLACK)))

    progress = engine.run(
        begin(folder, tmp_path / "out", settings),
        ONE_WORKER,
        on_progress=lambda _: None,
        open_servable=Model(tmp_path, deaths=1),
    )

    assert (tmp_path / "death-0").exists()
    assert len(list(tmp_path.glob("process-*"))) == 2  # another process went on
    assert statuses(tmp_path / "out") == [(f"{index:03}.png", 200) for index in range(12)]
    assert (progress.done, progress.worked, progress.failed) == (12, 12, Counter())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "_job.json",
        "_images.json.gz",
        *(f"part-{number:06}.jsonl" for number in range(4)),
    }


@pytest.mark.usefixtures("ray_here")
def test_a_job_that_was_stopped_goes_on_with_what_is_left(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings
) -> None:
    folder, target = pictures(12), tmp_path / "out"
    seen: list[int] = []

    def stop_after_the_first_shard(progress: engine.Progress) -> None:
        seen.append(progress.done)
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run(
            begin(folder, target, settings),
            ONE_WORKER,
            on_progress=stop_after_the_first_shard,
            open_servable=Model(tmp_path),
        )
    written = {path: path.stat().st_mtime_ns for path in target.glob("part-*")}

    job = begin(folder, target, settings)
    progress = engine.run(job, ONE_WORKER, on_progress=lambda _: None, open_servable=Model(tmp_path))

    assert seen == [0, 3]
    assert job.images_done >= 3
    assert progress.worked == 12 - job.images_done
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert statuses(target) == [(f"{index:03}.png", 200) for index in range(12)]


@pytest.mark.usefixtures("ray_here")
def test_shards_that_fail_are_missing_and_the_rest_is_there(
    pictures: Callable[[int], Path], tmp_path: Path, settings: Settings
) -> None:
    folder = pictures(6)
    job = begin(folder, tmp_path / "out", settings)
    for name in ("000.png", "001.png", "002.png"):
        (folder / name).unlink()
        (folder / name).mkdir()  # there, and cannot be read

    progress = engine.run(job, ONE_WORKER, on_progress=lambda _: None, open_servable=Model(tmp_path))

    assert statuses(tmp_path / "out") == [(f"00{index}.png", 200) for index in (3, 4, 5)]
    assert (progress.images, progress.done) == (6, 3)
