"""The calls of the API. Each parses, calls the predictor, renders; what is said about them is in `openapi`."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from service.inference.access import charge
from service.inference.decoding import ImageDecoder
from service.inference.errors import InvalidInputError, UnavailableError
from service.inference.estimates import EstimateRequest, Priority
from service.inference.models import ModelReference
from service.inference.ports import Backend, Clock
from service.inference.predictor import Predictor
from service.inference.requests import (
    RequestObserver,
    as_service_error,
    client_id_from,
    observed_failure,
    observed_image,
)
from service.rest import openapi
from service.rest.parsing import parse_timeout, read_image, read_images
from service.rest.policy import RestPolicy
from service.rest.problems import reported_problem
from service.rest.rendering import (
    choose_media_type,
    hand_pose,
    hand_pose_json,
    model_description,
    picture_with_hands,
    served_by,
    skeleton,
)
from service.rest.schemas import Batch, BatchItem, HandPose, Models, Skeleton, Status
from service.rest.uploads import count_answer

MODEL_HEADER: Final = "X-Model-Variant"
CLIENT_HEADER: Final = "X-Client-Id"

Metrics = Callable[[str | None], tuple[bytes, str]]
"""Everything measured, in a format that an Accept header takes, and the Content-Type of it."""

_JSON: Final = "application/json"

T = TypeVar("T")


def hand_pose_routes(
    *, predictor: Predictor, decoder: ImageDecoder, observer: RequestObserver, clock: Clock, policy: RestPolicy
) -> APIRouter:
    """The two calls that find hands; see `service.rest.app.create_app` for the arguments."""
    router = APIRouter(tags=["hands"])

    def asked(request: Request) -> partial[EstimateRequest]:
        """What the headers ask for, of any image. Raises InvalidInputError."""
        headers = request.headers
        timeout_s = parse_timeout(
            headers.get("X-Request-Timeout-Ms"), default_s=policy.default_deadline_s, max_s=policy.max_deadline_s
        )
        return partial(
            EstimateRequest,
            deadline=request.state.arrived + timeout_s,
            asked_for=headers.get(MODEL_HEADER),
            client_id=client_id_from(headers.get(CLIENT_HEADER), CLIENT_HEADER),
        )

    @router.post("/v1/hand-pose", response_model=HandPose, **openapi.HAND_POSE)
    async def find_hands(request: Request) -> Response:
        since, asked_for = request.state.arrived, request.headers.get(MODEL_HEADER)
        counted = observed_image(observer, clock, since=since, asked_for=asked_for, disconnected=(ClientDisconnect,))
        with observer.in_flight(), counted as outcome:
            media_type, estimate_request = choose_media_type(request.headers.get("accept")), asked(request)
            content, options = await read_image(request, max_body_bytes=policy.max_body_bytes, max_rois=policy.max_rois)
            wanted = estimate_request(**options.for_image(content))
            estimate = await _unless_sender_leaves(request, predictor.estimate(wanted))
            outcome.model = estimate.model
            headers = {MODEL_HEADER: served_by(estimate.model)}
            if media_type == _JSON:
                answer = hand_pose_json(estimate, request.state.request_id)
                return Response(answer, headers=headers, media_type=_JSON)
            async with decoder.open(content, deadline=wanted.deadline) as image:
                picture = await image.apply(picture_with_hands, estimate.hands, media_type)
            count_answer(request.scope, len(picture))
            return Response(picture, headers=headers, media_type=media_type)

    @router.post("/v1/hand-pose:batch", response_model=Batch, **openapi.HAND_POSE_BATCH)
    async def find_hands_in_batch(request: Request) -> Response:
        since, asked_for = request.state.arrived, request.headers.get(MODEL_HEADER)
        request_id = request.state.request_id

        async def answer(index: int, wanted: EstimateRequest) -> BatchItem:
            try:
                with (
                    observer.part("image", index=index),
                    observed_image(observer, clock, since=since, asked_for=asked_for) as outcome,
                ):
                    if not wanted.image:
                        raise InvalidInputError("the file is empty", code="empty_image")
                    estimate = await predictor.estimate(wanted)
                    outcome.model = estimate.model
                return BatchItem(index=index, status=200, result=hand_pose(estimate, request_id))
            except Exception as error:  # noqa: BLE001 -- one image's failure must not take the others with it
                problem = reported_problem(as_service_error(error), request)
                return BatchItem(index=index, status=problem.status, problem=problem)

        counted = observed_failure(observer, clock, since=since, asked_for=asked_for, disconnected=(ClientDisconnect,))
        with observer.in_flight():
            with counted:
                estimate_request = asked(request)
                images, options = await read_images(
                    request, max_body_bytes=policy.max_body_bytes, max_images=policy.max_batch_images
                )
                charge(len(images), counted=1)
            wanted = (estimate_request(**options.for_image(each), priority=Priority.BULK) for each in images)
            answers = asyncio.gather(*(answer(index, each) for index, each in enumerate(wanted)))
            items = await _unless_sender_leaves(request, answers)
        batch = Batch(request_id=request_id, results=items)
        return Response(batch.model_dump_json(exclude_unset=True), media_type=_JSON)

    return router


def information_routes(
    *,
    backend: Backend,
    default_model: Callable[[], ModelReference],
) -> APIRouter:
    """What the service tells of its answers; see `service.rest.app.create_app` for the arguments."""
    router = APIRouter()

    @router.get("/v1/models", tags=["about"], **openapi.MODELS)
    async def list_models() -> Models:
        default, models = default_model(), sorted(backend.models(), key=lambda each: (each.variant, each.version))
        return Models(models=[model_description(each, default) for each in models])

    @router.get("/v1/skeleton", tags=["about"], **openapi.SKELETON)
    async def show_skeleton() -> Skeleton:
        return skeleton()

    return router


def operation_routes(*, metrics: Metrics | None, not_ready: Callable[[], Awaitable[str | None]]) -> APIRouter:
    """What whoever runs the service asks; without metrics there is no /metrics."""
    router = APIRouter()

    @router.get("/livez", tags=["operation"], **openapi.LIVE)
    async def is_alive() -> Status:
        return Status(status="alive")

    @router.get("/readyz", tags=["operation"], **openapi.READY)
    async def is_ready() -> Status:
        reason = await not_ready()
        if reason is not None:
            raise UnavailableError(reason, code="not_ready", retry_after_s=1.0)
        return Status(status="ready")

    if metrics is not None:

        @router.get("/metrics", tags=["operation"], response_class=Response, **openapi.METRICS)
        async def show_metrics(request: Request) -> Response:
            body, media_type = metrics(request.headers.get("accept"))
            return Response(body, media_type=media_type)

    return router


async def _unless_sender_leaves(request: Request, work: Awaitable[T]) -> T:
    """The work's result; if the sender goes away first, the work is cancelled.

    The request's body has been read, so that the next thing it receives is the end of the connection.

    Raises:
        ClientDisconnect: the sender has gone.
    """
    # The work is awaited here: whatever it holds (a place in a queue) is given back before the request counts as ended.
    answering = asyncio.current_task()
    assert answering is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        answering.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError as error:
        if left and answering.uncancel() == 0:
            raise ClientDisconnect from error
        raise
    finally:
        watching.cancel()
