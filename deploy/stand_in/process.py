"""One stand-in as a process: started, switched to fail, asked what it counted, ended."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent.parent


class StandIn:
    """One stand-in process.

    Args:
        repository: the folder with the servables.
        config: the model server's configuration, as text.
        port: 0 lets the system choose; `restart` keeps what it chose.
        arguments: further arguments of the stand-in.
    """

    def __init__(self, repository: Path, config: str, *, port: int = 0, arguments: Sequence[str] = ()) -> None:
        self.config_file = repository / "models.config"
        self.config_file.write_text(config)
        self._arguments = tuple(arguments)
        self._process: subprocess.Popen[str] | None = None
        self.port = port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start it, and return when its port is open. Raises ChildProcessError if it ends instead."""
        command = [
            *(sys.executable, "-m", "deploy.stand_in.server", "--config", str(self.config_file)),
            *("--port", str(self.port), "--poll-s", "0.05", "--load-retry-interval-s", "0.05", *self._arguments),
        ]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.port = self._reply()["port"]
        return self

    def order(self, **faults: Any) -> dict[str, Any]:
        """Throw switches; see `deploy.stand_in.server.Faults`."""
        return self._say({"set": faults})

    def report(self) -> dict[str, Any]:
        """What it has counted ("counts" by call and refusal, "traceparents" in order), and batches that run or wait."""
        return self._say({"report": True})

    def kill(self, *, signal: int = SIGKILL) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal)
            self._finish()

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._finish()

    def _finish(self) -> None:
        assert self._process is not None
        self._process.wait(timeout=30)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None

    def _say(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait(timeout=30)
            self._finish()
            raise ChildProcessError(f"the stand-in ended with status {status}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
