"""What native code says while it starts: information goes, everything else stays."""

import os

import pytest

from service.backends.native_log import native_log_filtered


def test_information_is_dropped_and_everything_else_passes(capfd: pytest.CaptureFixture[str]) -> None:
    with native_log_filtered():
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n")
        os.write(2, b"I0000 00:00:1795370065.302971    5881 port.cc:153] oneDNN custom operations are on.\n")
        os.write(2, b"E0000 00:00:1795370065.302971    5881 device.cc:1] a device is broken\n")
        os.write(2, b"12:00:00 info    loading\nlast words without an end of line")
    os.write(2, b"\nafterwards: I0000 00:00:1.2 stays\n")
    assert capfd.readouterr().err.splitlines() == [
        "E0000 00:00:1795370065.302971    5881 device.cc:1] a device is broken",
        "12:00:00 info    loading",
        "last words without an end of line",
        "afterwards: I0000 00:00:1.2 stays",
    ]


def test_standard_error_works_again_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with native_log_filtered():
            os.write(2, b"on the way\n")
            raise ImportError

    with pytest.raises(ImportError):
        fail()
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "on the way\nafterwards\n"
