"""The file of keys: read, refused where it is not right, followed, and edited by the command."""

import argparse
import asyncio
import os
import stat
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.access.commands import add_arguments, run
from service.access.key_file import add_key, parse_keys, read_keys, remove_key
from service.files import FileError, FollowedFile
from service.inference.access import AccessPolicy, Allowance, ApiKey, Doorkeeper
from service.inference.errors import UnauthenticatedError
from service.inference.keys import digest_of, is_key, new_key
from tests.support.clock import ManualClock

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def entry(name: str, key: str | None = None, **more: object) -> str:
    lines = [f"- name: {name}", f"  sha256: {digest_of(key or new_key()).hex()}"]
    return "\n".join([*lines, *(f"  {field}: {value}" for field, value in more.items())]) + "\n"


def test_entries_become_keys() -> None:
    key = new_key()
    first, second = parse_keys(
        (entry("kiosk", key, expires="2027-01-01T00:00:00Z", images_per_second=5, burst=8) + entry("lab")).encode()
    )
    assert (first.name, first.digest) == ("kiosk", digest_of(key))
    assert first.expires == datetime(2027, 1, 1, tzinfo=UTC)
    assert first.allowance == Allowance(5, 8)
    assert (second.expires, second.allowance) == (None, None)


def test_rates_are_written_shortly() -> None:
    unlimited, two_seconds, slow = parse_keys(
        (
            entry("a", images_per_second=0) + entry("b", images_per_second=20) + entry("c", images_per_second=0.1)
        ).encode()
    )
    assert unlimited.allowance == Allowance()
    assert two_seconds.allowance == Allowance(20, 40)
    assert slow.allowance == Allowance(0.1, 1)


@pytest.mark.parametrize("content", ["", "[]", "# no keys yet\n"])
def test_file_without_entries_has_no_keys(content: str) -> None:
    assert parse_keys(content.encode()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- name: [", "line 1: no YAML"),
        ("name: kiosk", "line 1: input should be a valid list"),
        ("- name: kiosk", r"line 1: 0\.sha256: field required"),
        (entry("a") + entry("Zwölf"), r"line 3: 1\.name: string should match pattern"),
        (entry("-x"), r"line 1: 0\.name: string should match"),
        ("- name: a\n  sha256: secret", r"line 2: 0\.sha256: string should match"),
        (entry("a", expires="2027-01-01"), r"line 3: 0\.expires: input should "),
        (entry("a", images_per_second=-1), "greater than or equal to 0"),
        (entry("a", images_per_second=1, burst=0), "greater than or equal to 1"),
        (entry("a", images_per_second=".inf"), "finite"),
        (entry("a", colour="red"), r"line 3: 0\.colour: extra inputs are not permitted"),
        (entry("a") + entry("a"), "line 1: two entries have the same name"),
        ("- name: a\n  name: b", "name is given twice"),
        ("- &x [*x]", "no YAML|line 1"),
        ("\x00", "no YAML"),
        (entry("a", expires="!!timestamp x"), r"line 3: 0\.expires: input should "),
        (entry("a", burst="!!int ''"), "no YAML"),
        (entry("a", burst=9), r"line \d: 0: burst: needs images_per_second above 0"),
        (entry("a", images_per_second=0, burst=9), r"line \d: 0: burst: needs images_per_second above 0"),
    ],
)
def test_file_that_is_not_right_is_told_with_place_and_what_is_allowed(content: str, words: str) -> None:
    with pytest.raises(FileError, match=words) as caught:
        parse_keys(content.encode(), "keys.yaml")
    assert str(caught.value).startswith("keys.yaml")
    assert "\n" not in str(caught.value)


def test_key_in_place_of_its_hash_is_refused_and_not_repeated() -> None:
    key = new_key()
    with pytest.raises(FileError) as caught:
        parse_keys(f"- name: a\n  sha256: {key}".encode())
    assert key not in str(caught.value)


def test_same_key_under_two_names_is_refused() -> None:
    key = new_key()
    with pytest.raises(FileError, match="sha256"):
        parse_keys((entry("a", key) + entry("b", key)).encode())


# Following


def followed_keys(path: Path, doorkeeper: Doorkeeper) -> FollowedFile[list[ApiKey]]:
    return FollowedFile(path, parse_keys, doorkeeper.follow, what="keys")


class Followed:
    """A file, and a doorkeeper that follows it."""

    def __init__(self, path: Path) -> None:
        self.path, self.doorkeeper = path, Doorkeeper(AccessPolicy(), time=ManualClock().time)
        self.file = followed_keys(path, self.doorkeeper)

    def lets_in(self, key: str) -> bool:
        try:
            self.doorkeeper.admit(key, "192.0.2.1")
        except UnauthenticatedError:
            return False
        return True


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path / "keys.yaml")


def test_keys_are_added_and_revoked_by_changing_the_file(followed: Followed) -> None:
    old, new = new_key(), new_key()
    followed.path.write_text(entry("old", old))
    assert followed.file.load()
    assert not followed.file.load()
    followed.path.write_text(entry("new", new))
    assert (followed.lets_in(old), followed.lets_in(new)) == (True, False)
    assert followed.file.load()
    assert (followed.lets_in(old), followed.lets_in(new)) == (False, True)


@pytest.mark.parametrize("how", ["broken", "gone"])
def test_broken_or_missing_file_opens_no_door_and_closes_none(followed: Followed, how: str) -> None:
    key = new_key()
    followed.path.write_text(entry("kiosk", key))
    followed.file.load()
    if how == "gone":
        followed.path.unlink()
    else:
        followed.path.write_text("- name: [")
    with pytest.raises(FileError):
        followed.file.load()
    assert followed.lets_in(key)
    assert not followed.lets_in(new_key())


class FailsOnce(Doorkeeper):
    """A doorkeeper with a defect: it breaks when it is first given keys."""

    broke = False

    def follow(self, keys: Sequence[ApiKey]) -> None:
        if not self.broke:
            self.broke = True
            raise RuntimeError("a defect")
        super().follow(keys)


async def test_following_goes_on_after_a_file_that_breaks_the_parser(
    followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    gone, stays = new_key(), new_key()
    followed.path.write_text(entry("gone", gone) + entry("stays", stays))
    followed.file.load()
    followed.path.write_text(entry("stays", stays, expires="!!timestamp x"))
    following = asyncio.create_task(followed.file.watch(every_s=0))
    await until(lambda: following.done() or "the previous stays in use" in caplog.text)
    followed.path.write_text(entry("stays", stays))
    await until(lambda: following.done() or (not followed.lets_in(gone) and followed.lets_in(stays)))
    assert not following.done()
    following.cancel()


def test_a_file_that_is_just_being_written_revokes_nobody(followed: Followed) -> None:
    stays = new_key()
    followed.path.write_text(entry("stays", stays))
    followed.file.load()
    followed.path.write_text("")  # as an editor or `cp` leaves it for a moment
    with pytest.raises(FileError, match="is empty"):
        followed.file.load()
    assert followed.lets_in(stays)
    followed.path.write_text("[]")
    followed.file.load()
    assert not followed.lets_in(stays)


async def test_following_goes_on_after_a_defect_and_the_log_tells_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, doorkeeper = tmp_path / "keys.yaml", FailsOnce(AccessPolicy(), time=ManualClock().time)
    path.write_text(entry("a"))
    following = asyncio.create_task(followed_keys(path, doorkeeper).watch(every_s=0))
    await until(lambda: following.done() or doorkeeper.names == ("a",))
    assert not following.done()
    assert "the previous stays in use" in caplog.text
    following.cancel()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0)


# The command


def keys(path: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args(arguments), path, now=lambda: NOW)


def test_new_key_is_printed_once_and_only_its_hash_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.yaml"
    assert keys(path, "new", "--name", "kiosk") == 0
    key = capsys.readouterr().out.strip()
    assert is_key(key)
    assert [each.digest for each in read_keys(path)] == [digest_of(key)]
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_new_key_has_the_expiry_and_rate_that_were_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    assert keys(path, "new", "--name", "a", "--expires-in-days", "30", "--images-per-second", "5", "--burst", "9") == 0
    (key,) = read_keys(path)
    assert (key.expires, key.allowance) == (NOW + timedelta(days=30), Allowance(5, 9))


def test_what_else_is_in_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    before = "# ours\n" + entry("a") + "# theirs\n" + entry("b")
    path.write_text(before)
    path.chmod(0o640)
    add_key(path, "c", now=NOW)
    assert path.read_text().startswith(before)
    remove_key(path, "c")
    assert path.read_text() == before
    remove_key(path, "a")
    assert [key.name for key in read_keys(path)] == ["b"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["keys.yaml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_file_that_root_edits_stays_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(entry("a") + entry("b"))
    path.chmod(0o600)
    os.chown(path, 12345, 23456)
    remove_key(path, "a")
    after = path.stat()
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (12345, 23456, 0o600)


def test_file_in_another_encoding_is_not_edited(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_bytes(entry("a").encode("utf-16"))
    with pytest.raises(FileError, match="UTF-8"):
        remove_key(path, "a")


def test_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "keys.yaml"
    real.write_text(entry("a"))
    link.symlink_to(real)
    add_key(link, "b", now=NOW)
    assert link.is_symlink()
    assert len(read_keys(real)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("new", "--name", "a"), "two entries have the same name"),
        (("new", "--name", "two words"), "1.name: string should match"),
        (("new", "--name", "b", "--burst", "5"), "1: burst: needs images_per_second"),
        (("new", "--name", "b", "--images-per-second", "1", "--burst", "0"), "greater than or equal to 1"),
        (("revoke", "--name", "b"), "no key named 'b'; there are a"),
    ],
)
def test_edit_that_is_not_right_changes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(entry("a"))
    before = path.read_bytes()
    assert keys(path, *arguments) == 1
    output = capsys.readouterr()
    assert words in output.err
    assert output.out == ""
    assert path.read_bytes() == before


def test_list_tells_names_and_expiry_and_no_hashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(entry("a") + entry("b", expires="2026-11-22T12:00:00Z", images_per_second=2))
    assert keys(path, "list") == 0
    assert capsys.readouterr().out.splitlines() == [
        "a: for ever",
        "b: until 2026-11-22T12:00:00+00:00 (expired), 2 images a second, 4 at once",
    ]
