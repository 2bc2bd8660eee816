"""Asks a gateway over and over from many connections, and remembers what became of every request.

Nothing is tried again: what matters here is which requests were sent and got no answer. Standard library only.
"""

import http.client
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

CONNECT_S: Final = 2
ANSWER_S: Final = 60
PAUSE_S: Final = 0.1
"""After a refusal. A client that asks again at once only measures how fast refusals are."""


@dataclass
class Outcome:
    """What clients saw.

    Attributes:
        statuses: HTTP status by request id, of what was answered.
        lost: what happened instead of an answer, by the id of a request that was sent.
        refused: connections that nobody took any more. No request was sent on them.
    """

    statuses: dict[str, int] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    refused: int = 0

    def by_status(self) -> dict[int, int]:
        return dict(sorted(Counter(self.statuses.values()).items()))


class Load:
    """Clients that each keep one request under way, on connections that stay open.

    Args:
        address: host and port of REST.
        image: a JPEG.
        clients: how many.

    Attributes:
        name: what the ids of its requests begin with.
    """

    def __init__(self, address: tuple[str, int], image: bytes, clients: int) -> None:
        self.name = f"load-{uuid.uuid4().hex[:8]}-"
        self._address = address
        self._image = image
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self.outcome = Outcome()
        self._threads = [
            threading.Thread(target=self._ask_for_ever, args=(("lightweight", "standard")[number % 2],), daemon=True)
            for number in range(clients)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def under_way(self) -> set[str]:
        """Ids of requests that were sent and have no answer yet."""
        with self._lock:
            return set(self._under_way)

    def answered(self, requests: int) -> bool:
        """Whether so many requests have been answered."""
        with self._lock:
            return len(self.outcome.statuses) >= requests

    def stop(self) -> Outcome:
        """Let every client finish what it asked."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.outcome

    def _ask_for_ever(self, variant: str) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            if connection is None or connection.sock is None:
                # A connection is one thing and a request another: who is not let in has lost nothing.
                connection = http.client.HTTPConnection(*self._address, timeout=CONNECT_S)
                try:
                    connection.connect()
                    connection.sock.settimeout(ANSWER_S)
                except OSError:
                    with self._lock:
                        self.outcome.refused += 1
                    connection.close()
                    connection = None
                    time.sleep(PAUSE_S)
                    continue
            if self._ask(connection, variant) != http.HTTPStatus.OK:
                time.sleep(PAUSE_S)
        if connection is not None:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, variant: str) -> int | None:
        """The status of the answer, None if there was none."""
        request_id = self.name + uuid.uuid4().hex[:16]
        headers = {
            "Content-Type": "image/jpeg",
            "X-Model-Variant": variant,
            "X-Request-Id": request_id,
            "X-Request-Timeout-Ms": str(ANSWER_S * 1000),  # a slow machine's answers are answers
        }
        with self._lock:
            self._under_way.add(request_id)
        try:
            connection.request("POST", "/v1/hand-pose", self._image, headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            with self._lock:
                self._under_way.discard(request_id)
                self.outcome.lost[request_id] = repr(error)
            return None
        with self._lock:
            self._under_way.discard(request_id)
            self.outcome.statuses[request_id] = answer.status
        return answer.status
