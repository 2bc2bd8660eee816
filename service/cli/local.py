"""The models in this process behind the client's interface: `handpose estimate` without a service."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from typing import Any

from service.answers import error_values, estimate_values
from service.bootstrap import LocalService
from service.client import HandPoseError, answers, types
from service.client.transport import BatchResults, EncodedFrame, Headers, Search
from service.inference.errors import ServiceError
from service.inference.estimates import Estimate, EstimateRequest, Priority
from service.inference.models import ServedModel
from service.inference.streaming import Frame, FrameAnswer, StreamOptions
from service.inference.tracking import TrackedEstimate

_ANSWERS_AHEAD = 8


class LocalTransport:
    """Implements `service.client.transport.AsyncTransport`. The service stays the caller's to close."""

    def __init__(self, service: LocalService) -> None:
        self._service = service

    async def estimate(self, image: bytes, search: Search, headers: Headers, timeout_s: float) -> types.Estimate:
        return await self._estimate(image, search, headers, timeout_s, Priority.INTERACTIVE)

    async def estimate_batch(
        self, images: Sequence[bytes], search: Search, headers: Headers, timeout_s: float
    ) -> BatchResults:
        async def one(image: bytes) -> types.Estimate | HandPoseError:
            try:
                return await self._estimate(image, search, headers, timeout_s, Priority.BULK)
            except HandPoseError as error:
                return error

        return list(await asyncio.gather(*map(one, images)))

    async def stream(
        self, frames: AsyncIterable[EncodedFrame], options: types.StreamOptions, headers: Headers
    ) -> AsyncGenerator[types.StreamAnswer, None]:
        outcomes: asyncio.Queue[FrameAnswer | Exception | None] = asyncio.Queue(_ANSWERS_AHEAD)

        async def incoming() -> AsyncIterator[Frame]:
            async for frame in frames:
                yield Frame(frame.image, frame.id, frame.time_s, frame.rois)

        async def run() -> None:
            wanted = StreamOptions(
                asked_for=headers.get("x-model-variant"),
                tracking=options.tracking,
                smoothing=options.smoothing,
                latest_only=options.latest_only,
                frame_timeout_s=options.frame_timeout_s,
                **_said_of(options),
            )
            end: Exception | None = None
            try:
                await self._service.streams.run(wanted, incoming(), outcomes.put)
            except Exception as error:  # noqa: BLE001 -- raised again where the answers are taken
                end = error
            await outcomes.put(end)

        running = asyncio.create_task(run())
        try:
            while (outcome := await outcomes.get()) is not None:
                if isinstance(outcome, Exception):
                    raise _error(outcome) if isinstance(outcome, ServiceError) else outcome
                yield _stream_answer(outcome)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def models(self, headers: Headers, timeout_s: float) -> list[types.Model]:  # noqa: ARG002 -- nothing travels
        served = sorted(self._service.backend.models(), key=lambda each: (each.variant, each.version))
        return [_model(each) for each in served]

    async def close(self) -> None:
        """Nothing is open here."""

    async def _estimate(
        self, image: bytes, search: Search, headers: Headers, timeout_s: float, priority: Priority
    ) -> types.Estimate:
        request = EstimateRequest(
            image=image,
            deadline=self._service.clock.time() + timeout_s,
            rois=search.rois,
            asked_for=headers.get("x-model-variant"),
            priority=priority,
            **_said_of(search),
        )
        try:
            return _converted(await self._service.predictor.estimate(request))
        except ServiceError as error:
            raise _error(error) from error


def _said_of(search: Search | types.StreamOptions) -> dict[str, Any]:
    """How hands are to be looked for, without what takes its default."""
    said = {"max_hands": search.max_hands, "min_score": search.min_score, "whole": search.whole}
    return {name: value for name, value in said.items() if value is not None}


def _converted(estimate: Estimate) -> types.Estimate:
    return answers.estimate(estimate_values(estimate, request_id=""))


def _error(error: ServiceError) -> HandPoseError:
    return answers.problem(error_values(error, instance="", request_id=""))


def _stream_answer(answer: FrameAnswer) -> types.StreamAnswer:
    outcome = answer.outcome
    if not isinstance(outcome, TrackedEstimate):
        return types.StreamAnswer(answer.frame_id, None, _error(outcome), skipped=answer.skipped)
    found = _converted(outcome.estimate)
    return types.StreamAnswer(answer.frame_id, found, None, outcome.tracked, answer.skipped, outcome.track_ids)


def _model(model: ServedModel) -> types.Model:
    of_card = model.card.model_dump(include={"input_size", "stride", "parameters", "created", "metrics"})
    return types.Model(model.name, model.variant, model.version, model.labels, **of_card)
