"""The command `handpose` against a running gateway: what it prints, what it writes, how it exits."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.cli.main import main
from service.inference.keys import new_key
from service.pose.keypoints import KEYPOINT_NAMES
from tests.support.images import image_bytes, picture
from tests.support.running_service import Service

SIZE = (160, 120)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "hand.jpg"
    path.write_bytes(image_bytes(picture(*SIZE), "JPEG"))
    return path


@pytest.fixture(params=["rest", "grpc"])
def url(service: Service, request: pytest.FixtureRequest) -> str:
    return service.urls[request.param]


def test_a_picture_gets_a_line_of_text(url: str, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(photo), "--url", url, "--variant", "standard"]) == 0

    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{photo}: 1 hand (")
    assert "score 0.9" in line
    assert "standard@1" in line


def test_a_folder_gives_one_json_object_a_picture_and_overlays(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = tmp_path / "in", tmp_path / "out" / "deep"
    folder.mkdir()
    for index in range(10):
        (folder / f"{index}.png").write_bytes(image_bytes(picture(*SIZE)))
    (folder / "torn.jpg").write_bytes(b"\xff\xd8 torn")
    (folder / "notes.txt").write_text("no picture")

    code = main(["estimate", str(folder), "--url", url, "--json", "--save", str(target)])

    assert code == 1, "one of them failed"
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(answer["file"]).name for answer in answers] == [*(f"{index}.png" for index in range(10)), "torn.jpg"]
    assert answers[-1]["error"]["code"] == "undecodable_image"
    assert [point["name"] for point in answers[0]["hands"][0]["keypoints"]] == list(KEYPOINT_NAMES)
    assert sorted(path.name for path in target.iterdir()) == [f"{index}_hand.png" for index in range(10)]
    with Image.open(target / "0_hand.png") as overlay:
        assert overlay.size == SIZE
        assert len(overlay.convert("RGB").getcolors(100_000) or ()) > 10, "something is drawn on the plain picture"


def test_the_files_of_a_folder_are_chosen_by_content_and_the_others_are_counted_and_named(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.JFIF", "b", "c.txt"):
        (folder / name).write_bytes(image_bytes(picture(*SIZE), "JPEG"))
    (folder / ".hidden.jpg").write_bytes(image_bytes(picture(*SIZE), "JPEG"))
    (folder / "letter.jpg").write_bytes(b"%PDF-1.7 no picture")
    (folder / "notes.txt").write_text("no picture")

    assert main(["estimate", str(folder), "--url", url, "--json"]) == 0

    output = capsys.readouterr()
    answers = [json.loads(line) for line in output.out.splitlines()]
    assert [Path(answer["file"]).name for answer in answers] == ["a.JFIF", "b", "c.txt"]
    assert "left out 3 of 6 files, no pictures: .hidden.jpg, letter.jpg, notes.txt" in output.err


@pytest.mark.parametrize("name", ["overlay.png", "overlay.jpg", "deep/overlay.PNG"])
def test_one_picture_is_saved_in_the_file_that_is_named(url: str, photo: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "out" / name

    assert main(["estimate", str(photo), "--url", url, "--save", str(target)]) == 0

    with Image.open(target) as overlay:
        assert overlay.size == SIZE


def test_a_folder_with_the_name_of_a_file_stays_a_folder(url: str, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "out.png").mkdir()

    assert main(["estimate", str(photo), "--url", url, "--save", str(tmp_path / "out.png")]) == 0

    assert [path.name for path in (tmp_path / "out.png").iterdir()] == ["hand_hand.png"]


def test_pictures_of_the_same_name_get_overlays_of_their_own(url: str, tmp_path: Path) -> None:
    names = ("a/hand.jpg", "b/hand.png", "b/Hand.jpg", "hand_hand_2.png")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image_bytes(picture(*SIZE)))
    target = tmp_path / "out"

    assert main(["estimate", *(str(tmp_path / name) for name in names), "--url", url, "--save", str(target)]) == 0

    written = sorted(path.name for path in target.iterdir())
    assert written == ["Hand_hand_3.png", "hand_hand.png", "hand_hand_2.png", "hand_hand_2_hand.png"]


def test_a_roi_is_asked_about(url: str, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(photo), "--url", url, "--json", "--roi", "10,20,60,50"]) == 0

    (hand,) = json.loads(capsys.readouterr().out)["hands"]
    assert hand["box"] == {"x": 10, "y": 20, "width": 60, "height": 50}


def test_a_picture_without_a_hand_is_answered_in_words(
    service: Service, url: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.do(lambda gateway: setattr(gateway.backend, "detections", ()))

    assert main(["estimate", str(photo), "--url", url, "--save", str(tmp_path / "out.png")]) == 0
    text = capsys.readouterr().out
    assert main(["estimate", str(photo), "--url", url, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)

    assert text.startswith(f"{photo}: no hand found, lightweight@1")
    assert answer["hands"] == []
    with Image.open(tmp_path / "out.png") as overlay, Image.open(photo) as drawn_on:
        assert overlay.convert("RGB").tobytes() == drawn_on.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["estimate", "no_such_file.jpg"], "no such file"),
        (["estimate", "{folder}"], "no picture in this folder"),
        (["estimate", "{photo}", "{photo}", "--roi", "1,2,3,4"], "--roi is for a single picture"),
        (["estimate", "{photo}", "{photo}", "--save", "x.png"], "a file holds one picture or video"),
        (["estimate", "{photo}", "--save", "x.mp4"], "a picture is saved as .png, .jpg or .webp, a video as .mp4"),
        (["estimate", "{photo}", "--url", "ftp://host"], "http://"),
        (["estimate", "{photo}", "--url", "http://127.0.0.1:1"], "cannot be reached"),
        (["estimate", "{photo}", "--model-repo", "{folder}"], "{folder}"),
        (["models", "--url", "grpc://127.0.0.1:1"], "cannot be reached"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], said: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    names = {"photo": photo, "folder": folder}

    assert main([each.format(**names) for each in arguments]) == 1

    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("handpose: ")
    assert said.format(**names) in error


def test_an_unknown_model_fails_each_picture(url: str, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(photo), "--url", url, "--variant", "enormous"]) == 1

    assert "unknown_variant" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["estimate"],
        ["dance"],
        ["estimate", "hand.jpg", "--roi", "1,2,3"],
        ["estimate", "hand.jpg", "--roi", "1,2,3,4", "--whole"],
        ["estimate", "hand.jpg", "--max-hands", "17"],
        ["estimate", "hand.jpg", "--max-hands", "two"],
        ["estimate", "hand.jpg", "--min-score", "1.5"],
        ["estimate", "hand.jpg", "--min-score", "high"],
        ["bench", "--seconds", "-1"],
        ["bench", "--seconds", "soon"],
        ["bench", "--concurrency", "0"],
        ["serve", "--port", "many"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert "usage: handpose" in capsys.readouterr().err


def test_serve_hands_its_options_to_the_service(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HANDPOSE_REST_PORT", "8000")  # put back afterwards
    assert main(["serve", "--port", "99999"]) == 2

    assert "HANDPOSE_REST_PORT=99999" in capsys.readouterr().err


def test_models_are_listed_as_a_table_and_as_json(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--url", url]) == 0
    table = capsys.readouterr().out
    assert main(["models", "--url", url, "--json"]) == 0
    models = json.loads(capsys.readouterr().out)

    assert "lightweight" in table
    assert [(model["name"], model["version"]) for model in models] == [("cpm_lightweight", 1), ("cpm_standard", 1)]


@pytest.mark.parametrize("mode", [[], ["--stream"]])
def test_bench_counts_what_was_answered(
    url: str, mode: list[str], photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(photo), "--url", url, "--seconds", "0.2", "--concurrency", "2", "--json", *mode]) == 0

    figures = json.loads(capsys.readouterr().out)
    assert figures["answered"] > 0
    assert figures["failed"] == 0
    assert figures["images_per_second"] == pytest.approx(figures["answered"] / figures["seconds"])
    assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["longest_ms"]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])

    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert all(command in said for command in ("serve", "estimate", "models", "bench", "trainer"))


def test_completion_scripts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", "bash"])

    assert caught.value.code == 0
    assert "estimate" in capsys.readouterr().out


def test_the_trainers_words_are_passed_through(capfd: pytest.CaptureFixture[str]) -> None:
    code = main(["trainer", "--no-such-option"])

    assert code == 2
    assert "trainer" in capfd.readouterr().err


def test_a_video_is_followed_and_written_with_the_hand_drawn(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fractions import Fraction

    from service.cli.video import VideoWriter, read

    path = tmp_path / "wave.mp4"
    with VideoWriter(path, Fraction(30)) as writer:
        for index in range(5):
            writer.write(picture(*SIZE, colour=(30 * index, 90, 120)))

    assert main(["estimate", str(path), "--url", url, "--json", "--smooth", "--save", str(tmp_path / "out")]) == 0

    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["frame"] for answer in answers] == list(range(5))
    assert [answer["tracked"] for answer in answers[:2]] == [False, True]
    np.testing.assert_allclose([answer["time_s"] for answer in answers], np.arange(5) / 30, atol=1e-3)
    overlays = list(read(tmp_path / "out" / "wave_hand.mp4"))
    assert len(overlays) == 5
    assert overlays[0].picture.size == SIZE
    assert len(overlays[0].picture.getcolors(100_000) or ()) > 10


def test_what_is_no_video_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wave.mp4"
    path.write_bytes(b"no video")

    assert main(["estimate", str(path), "--url", "http://127.0.0.1:1"]) == 1

    assert "not a video that can be read" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["option", "file", "environment"])
def test_key_is_taken_from_option_file_or_environment(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key, path = new_key(), tmp_path / "key"
    path.write_text(f"{key}\n")
    given = {"option": ["--api-key", key], "file": ["--api-key-file", str(path)], "environment": []}[how]
    if how == "environment":
        monkeypatch.setenv("HANDPOSE_API_KEY", key)
    service = Service(key)
    try:
        assert main(["models", "--url", service.urls["rest"]]) == (0 if how == "environment" else 1)
        assert main(["models", "--url", service.urls["grpc"], *given]) == 0
    finally:
        service.close()
    assert key not in "".join(capsys.readouterr())


def test_key_file_that_is_missing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none")
    assert main(["models", "--url", "http://127.0.0.1:1", "--api-key-file", missing]) == 1
    assert f"{missing}: no key can be read from it" in capsys.readouterr().err
