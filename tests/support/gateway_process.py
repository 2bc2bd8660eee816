"""The gateway as users start it: a process of its own, told by environment variables, ended by signals."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent.parent


class GatewayProcess:
    """One `python -m service` on ports that the system chooses.

    Args:
        settings: HANDPOSE_ variables without the prefix.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("HANDPOSE_")}
        # One look at a picture: stand-ins find a hand in any crop, wherever the first look saw one.
        self._environment |= {
            "HANDPOSE_REST_PORT": "0",
            "HANDPOSE_LOG_LEVEL": "warning",
        }
        self._environment |= {f"HANDPOSE_{name}": value for name, value in settings.items()}
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Start it, and return once it says that it is ready. Raises ChildProcessError if it ends instead."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service"], cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if (found := re.search(r"ready: http://[^ :]+:(\d+)", line)) is not None:
                self.port = int(found[1])
                threading.Thread(target=self._process.stdout.read, daemon=True).start()  # a full pipe would stop it
                return self
        raise ChildProcessError(f"the gateway ended with status {self._process.wait(30)}")

    def terminate(self) -> None:
        """SIGTERM."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Its exit status."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End it, if it still runs, as a crash would."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait(30)
            if self._process.stdout is not None:
                self._process.stdout.close()
