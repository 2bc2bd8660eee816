"""Prometheus metrics: the observer that counts and times, on a registry that is passed in.

Seconds and bytes, as Prometheus likes them. Labels come from a bounded set of values: models that exist, codes of the
error tree. What a stranger types never becomes a label.

Gateway processes that share a port share their counts too, if the environment variable PROMETHEUS_MULTIPROC_DIR names a
folder: each writes there, and each answers for all. That is the client library's own multi-process mode, which it
chooses when it is imported. It keeps no exemplars and nothing about a single process, and a series never goes away.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple

from opentelemetry.trace import Tracer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.inference.errors import RoutedTo
from service.inference.estimates import Estimate
from service.inference.models import VARIANTS, AnyModel, ModelReference, ServedModel
from service.inference.ports import DropReason, Phase, RejectReason, ReleaseReason
from service.inference.requests import OK
from service.observability.tracing import Traces, annotate, exemplar

SECONDS: Final = (0.005, 0.0075, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 1.5, 2.5, 5.0)
"""Buckets for answers that take 5 ms to 5 s."""

PHASE_SECONDS: Final = (0.0005, 0.001, 0.0025, *SECONDS)
"""Buckets for parts of an answer, some of which take less than a millisecond."""

BATCH_SIZES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
DISTANCES: Final = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
SCORES: Final = tuple(round(0.1 * step, 1) for step in range(1, 11))

UNKNOWN: Final = "unknown"
"""Label of requests that failed before it was known which model they meant."""

_MODEL: Final = ("variant", "version")
_SHADOW: Final = ("shadow_variant", "shadow_version")


class Exposition(NamedTuple):
    """All metrics, as they go over the wire: text, and what kind of text it is (a Content-Type)."""

    body: bytes
    media_type: str


class PrometheusObserver(Traces):
    """Counts, times and traces: implements the use case's, the protocols' and the shadow's observer ports.

    Args:
        registry: where the metrics are registered; one observer a registry.
        tracer: keeps spans; None keeps none.

    Raises:
        OSError: if the folder for shared counts cannot be made.
    """

    def __init__(self, registry: CollectorRegistry, tracer: Tracer | None = None) -> None:
        super().__init__(tracer)
        self._registry = registry
        self._shared = _SharedCounts() if values.ValueClass is not values.MutexValue else None
        self._listed: dict[Gauge, Sequence[tuple[str, ...]]] = {}

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, mode: Literal["livesum", "livemin", "livemax"]) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode=mode)

        def histogram(name: str, text: str, *labels: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets)

        self._requests = counter("handpose_requests", "Requests by outcome: ok, or a problem's code.", *_MODEL, "code")
        self._durations = histogram(
            "handpose_request_duration_seconds",
            "Time from a request's first byte to its answer.",
            *(*_MODEL, "code"),
            buckets=SECONDS,
        )
        self._phases = histogram(
            "handpose_stage_duration_seconds",
            "Time spent in a phase: decode, queue, inference, postprocess.",
            *(*_MODEL, "stage"),
            buckets=PHASE_SECONDS,
        )
        self._batch_sizes = histogram("handpose_batch_size", "Crops in a micro-batch.", *_MODEL, buckets=BATCH_SIZES)
        self._releases = counter(
            "handpose_batch_release", "Micro-batches by why they left: full, waited, idle.", *_MODEL, "reason"
        )
        self._depths = gauge("handpose_queue_depth", "Places taken in a model's queue.", *_MODEL, mode="livesum")
        self._queue_limit = gauge("handpose_queue_limit", "Places that each model's queue has.", mode="livesum")
        self._drops = counter(
            "handpose_dropped",
            "Accepted crops that left the queue without being run: expired, cancelled.",
            *(*_MODEL, "reason"),
        )
        self._rejections = counter("handpose_rejected", "Requests that got no place in the queue.", *_MODEL, "reason")
        self._in_flight = gauge("handpose_inflight_requests", "Requests being worked on.", mode="livesum")
        self._scores = histogram(
            "handpose_keypoint_score", "Scores of the keypoints returned.", *_MODEL, buckets=SCORES
        )
        self._shadow_distances = histogram(
            "handpose_shadow_distance",
            "Mean distance of a copy's keypoints from the answer's, over the longer side of the hand's box.",
            *(*_MODEL, *_SHADOW),
            buckets=DISTANCES,
        )
        self._shadow_durations = histogram(
            "handpose_shadow_duration_seconds",
            "Time for requests that were copied: of the answer, and of the copy (model=answered|shadow).",
            *(*_MODEL, *_SHADOW, "model"),
            buckets=SECONDS,
        )
        self._shadow_failures = counter(
            "handpose_shadow_failures",
            "Copies without an answer by reason: a kind of error, or skipped where there were too many.",
            *("shadow_variant", "reason"),
        )
        self._backend_up = gauge("handpose_backend_up", "1 if every model answers, else 0.", mode="livemin")
        self._backend_up.set(0)
        self._backend_info = gauge(
            "handpose_backend_info",
            "1 for what runs the models: embedded, tensorflow_serving.",
            "backend",
            mode="livemax",
        )
        self._models = gauge(
            "handpose_model_info", "1 for each model version that is served.", "name", *_MODEL, "labels", mode="livemax"
        )
        self._unavailable = gauge(
            "handpose_model_unavailable",
            "1 for each version that a model server should serve and does not: load_failed, not_available.",
            *(*_MODEL, "reason"),
            mode="livemax",
        )
        self._batches_too_large = counter(
            "handpose_batches_too_large",
            "Batches that a model server refused as too large; smaller ones are sent from then on.",
        )
        if self._shared is None:  # else whichever process answers would speak for all
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)

    # What the use case reports

    def estimated(self, estimate: Estimate) -> None:
        model, timings = _of(estimate.model), estimate.timings
        for phase in Phase:
            seconds = getattr(timings, phase.value)
            if phase is not Phase.DETECTION or seconds:  # not every request looks for hands
                self._phases.labels(*model, phase.value).observe(seconds, exemplar())
        scores = self._scores.labels(*model)
        for hand in estimate.hands:
            for score in hand.scores.tolist():
                scores.observe(score)
        width, height = estimate.image_size
        annotate(routed_by=estimate.routed_by, image_width=width, image_height=height)

    def batch_released(self, model: AnyModel, size: int, reason: ReleaseReason) -> None:
        self._batch_sizes.labels(*_of(model)).observe(size)
        self._releases.labels(*_of(model), reason.value).inc()

    def queue_changed(self, model: AnyModel, depth: int) -> None:
        self._depths.labels(*_of(model)).set(depth)

    def request_dropped(self, model: AnyModel, reason: DropReason) -> None:
        self._drops.labels(*_of(model), reason.value).inc()

    def request_rejected(self, model: AnyModel, reason: RejectReason) -> None:
        self._rejections.labels(*_of(model), reason.value).inc()

    # What the shadow reports

    def shadow_compared(
        self, answered: ServedModel, shadow: ServedModel, distance: float, answered_s: float, shadow_s: float
    ) -> None:
        labels = (*_of(answered), *_of(shadow))
        self._shadow_distances.labels(*labels).observe(distance)
        self._shadow_durations.labels(*labels, "answered").observe(answered_s)
        self._shadow_durations.labels(*labels, "shadow").observe(shadow_s)

    def shadow_failed(self, target: ModelReference, reason: str) -> None:
        self._shadow_failures.labels(target.variant, reason).inc()

    # What the protocols report

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        with self._in_flight.track_inprogress():
            yield

    def image_answered(self, routed_to: RoutedTo | None, asked_for: str | None, code: str, seconds: float) -> None:
        variant, version = routed_to or (_variant_in(asked_for), None)
        labels = variant, UNKNOWN if version is None else str(version), code
        self._requests.labels(*labels).inc()
        self._durations.labels(*labels).observe(seconds, exemplar())
        if version is not None:
            annotate(variant=variant, version=version)
        if code != OK:
            annotate(problem=code)

    # What the life cycle reports

    def backend_is(self, up: bool) -> None:
        """Whether every model answers."""
        self._backend_up.set(int(up))

    def backend_named(self, name: str, *, max_queue: int) -> None:
        """What runs the models, and how many places each model's queue has."""
        self._backend_info.labels(name).set(1)
        self._queue_limit.set(max_queue)

    def models_are(self, models: Sequence[ServedModel]) -> None:
        """The models served from now on."""
        self._list(self._models, [(model.name, *_of(model), ",".join(model.labels)) for model in models])
        for model in models:
            self._begin_at_zero(model)

    def models_unavailable(self, versions: Collection[tuple[str, int | None, str]]) -> None:
        """The versions that cannot be asked though they should: variant, version (None: no version at all), reason."""
        named = [(variant, "none" if version is None else str(version), why) for variant, version, why in versions]
        self._list(self._unavailable, named)

    def batch_too_large(self) -> None:
        """A model server refused a batch as larger than it takes."""
        self._batches_too_large.inc()

    def _list(self, gauge: Gauge, listed: Sequence[tuple[str, ...]]) -> None:
        """Have a gauge show 1 for each of these labels, and nothing else."""
        for gone in set(self._listed.get(gauge, ())) - set(listed):
            if self._shared is None:
                gauge.remove(*gone)
            else:  # shared counts cannot be removed
                gauge.labels(*gone).set(0)
        for labels in listed:
            gauge.labels(*labels).set(1)
        self._listed[gauge] = listed

    def _begin_at_zero(self, model: ServedModel) -> None:
        """A counter that appeared with its first event would hide that event from `rate`."""
        self._requests.labels(*_of(model), OK)
        self._depths.labels(*_of(model))
        for release in ReleaseReason:
            self._releases.labels(*_of(model), release.value)
        for drop in DropReason:
            self._drops.labels(*_of(model), drop.value)
        for rejection in RejectReason:
            self._rejections.labels(*_of(model), rejection.value)

    def stopped(self) -> None:
        """This process serves no more: where several share their counts, its gauges no longer count."""
        if self._shared is not None:
            self._shared.leave()

    def exposition(self, accept: str | None = None) -> Exposition:
        """All metrics.

        Args:
            accept: the request's Accept header. Whoever takes OpenMetrics gets it, with the traces of some requests
                as exemplars; everybody else gets Prometheus's text format.
        """
        try:
            encode, media_type = choose_encoder(accept or "")
        except ValueError:  # a version that is no number
            encode, media_type = choose_encoder("")
        return Exposition(encode(self._registry if self._shared is None else self._shared.collected()), media_type)


class _SharedCounts:
    """The folder in which several processes keep their counts: one file a process and kind of metric."""

    def __init__(self) -> None:
        self._folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])  # the library has read the same, at its import
        self._folder.mkdir(parents=True, exist_ok=True)

    def collected(self) -> CollectorRegistry:
        """What all processes have counted. Gauges of a process that has crashed are forgotten first."""
        for file in self._folder.glob("gauge_live*_*.db"):
            pid = file.stem.rpartition("_")[2]
            if pid.isdigit() and not _runs(int(pid)):
                with suppress(FileNotFoundError):  # another process may see the same
                    mark_process_dead(int(pid), str(self._folder))  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self._folder))  # type: ignore[no-untyped-call]
        return registry

    def leave(self) -> None:
        """Withdraw this process's gauges."""
        mark_process_dead(os.getpid(), str(self._folder))  # type: ignore[no-untyped-call]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _of(model: AnyModel) -> tuple[str, str]:
    return model.kind, str(model.version)


def _variant_in(asked_for: str | None) -> str:
    variant = (asked_for or "").partition("@")[0].strip().lower()
    return variant if variant in VARIANTS else UNKNOWN
