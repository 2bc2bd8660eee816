"""Files that change while the service runs: read within a bound, replaced in one step, followed."""

import asyncio
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.files import FileError, follow, read_at_most, replace


class Done(BaseException):
    """Ends the following, from within the last load."""


async def followed(outcomes: Iterator[bool | Exception]) -> None:
    """Follow something whose loads end like this, one after the other."""

    async def load() -> bool:
        try:
            outcome = next(outcomes)
        except StopIteration:
            raise Done from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with pytest.raises(Done):
        await follow(load, every_s=0, what="rules", expected=(ValueError,))


async def test_a_failure_is_logged_once_until_it_passes_or_becomes_another(caplog: pytest.LogCaptureFixture) -> None:
    await followed(iter([ValueError("a"), ValueError("a"), ValueError("b"), False, ValueError("b")]))

    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["a", "b", "b"]


async def test_a_change_is_logged_and_no_change_is_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        await followed(iter([False, True, False]))

    assert [record.getMessage() for record in caplog.records] == ["loaded the changed rules"]


async def test_a_defect_is_logged_with_its_traceback_and_does_not_end_the_following(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        await followed(iter([ZeroDivisionError("a defect"), True]))

    defect, change = caplog.records
    assert defect.exc_info is not None
    assert change.getMessage() == "loaded the changed rules"


async def test_following_ends_when_it_is_cancelled() -> None:
    async def load() -> bool:
        return False

    following = asyncio.create_task(follow(load, every_s=0, what="rules", expected=()))
    await asyncio.sleep(0)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


def test_a_file_that_is_too_long_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10))

    assert read_at_most(path, 10) == bytes(10)
    with pytest.raises(FileError, match="longer than 9 bytes"):
        read_at_most(path, 9)


def test_a_replaced_file_keeps_its_mode_and_a_new_one_is_private(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"before")
    old.chmod(0o640)

    replace(old, b"after")
    replace(new, b"new")

    assert (old.read_bytes(), new.read_bytes()) == (b"after", b"new")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (old, new)] == [0o640, 0o600]
    assert sorted(tmp_path.iterdir()) == [new, old]


def test_a_replaced_file_behind_a_link_is_replaced_where_it_is(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"before")
    link.symlink_to(real)

    replace(link, b"after")

    assert link.is_symlink()
    assert real.read_bytes() == b"after"


def test_a_file_that_cannot_be_replaced_stays_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)  # a folder cannot be replaced by a file

    with pytest.raises(FileError, match="folder"):
        replace(folder, b"content")

    assert list(tmp_path.iterdir()) == [folder]
