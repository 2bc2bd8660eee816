"""What REST allows, as one small value."""

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
