"""What REST allows, as small values."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestPolicy:
    """What REST allows.

    Attributes:
        max_body_bytes: longest body that is read.
        max_batch_images: images in one batch request.
        max_rois: regions of interest in one request, as the predictor allows them.
        default_deadline_s: time for a request that sets none.
        max_deadline_s: most time that a request may ask for.
        metrics: whether /metrics is served; an admin listener may do it instead.
        metrics_open: whether /metrics needs no key where others do.
        cors_origins: sites whose pages may use the service from a browser; "*": all.
        hsts_s: seconds for which browsers shall not come back without TLS; 0: says nothing.
    """

    max_body_bytes: int = 20 * 1024 * 1024
    max_batch_images: int = 32
    max_rois: int = 16
    default_deadline_s: float = 10.0
    max_deadline_s: float = 60.0
    metrics: bool = True
    metrics_open: bool = False
    cors_origins: tuple[str, ...] = ()
    hsts_s: int = 0


@dataclass(frozen=True, slots=True)
class TransferRate:
    """How slowly bodies, messages and answers may travel.

    Attributes:
        grace_s: for a body or message, on top of what its size takes at `min_bytes_per_s`; a reader below that rate
            for so long is cut off, too.
        min_bytes_per_s: the least rate of senders and readers.
    """

    grace_s: float = 20.0
    min_bytes_per_s: int = 16 * 1024

    def allowed_s(self, size: int) -> float:
        """How long so many bytes may take."""
        return self.grace_s + size / self.min_bytes_per_s


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may do, and how many there may be.

    Attributes:
        max_connections: of HTTP and WebSocket together; more are told 503.
        max_head_bytes: of a request's line and headers together.
        max_url_bytes: of a request's target.
        max_headers: in one request.
        head_timeout_s: for a request's head to be complete, from the connection or from its first byte on; also for
            the handshake of TLS.
        rate: the least rate of senders and readers.
        linger_s: for how long what still comes in is thrown away after an answer that did not wait for it, so that
            the sender can read the answer.
    """

    max_connections: int = 1000
    max_head_bytes: int = 32 * 1024
    max_url_bytes: int = 8 * 1024
    max_headers: int = 100
    head_timeout_s: float = 10.0
    rate: TransferRate = TransferRate()
    linger_s: float = 2.0
