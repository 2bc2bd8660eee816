"""The calls of the API. Each parses, calls the predictor, renders; what is said about them is in `openapi`."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from service.inference.access import charge
from service.inference.decoding import ImageDecoder
from service.inference.errors import InvalidInputError, ServiceError, UnavailableError
from service.inference.estimates import Estimate, EstimateRequest, Priority
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

HAND_POSE_PATH: Final = "/v1/hand-pose"
MODEL_HEADER: Final = "X-Model-Variant"
CLIENT_HEADER: Final = "X-Client-Id"
TIMEOUT_HEADER: Final = "X-Request-Timeout-Ms"

Metrics = Callable[[str | None], tuple[bytes, str]]
"""Everything measured, in a format that an Accept header takes, and the Content-Type of it."""

_JSON: Final = "application/json"
_RETRY_WHEN_NOT_READY_S: Final = 1.0

T = TypeVar("T")


def hand_pose_routes(
    *, predictor: Predictor, decoder: ImageDecoder, observer: RequestObserver, clock: Clock, policy: RestPolicy
) -> APIRouter:
    """The two calls that find hands; see `service.rest.app.create_app` for the arguments."""
    router = APIRouter(tags=["hands"])

    @router.post(HAND_POSE_PATH, response_model=HandPose, **openapi.HAND_POSE)
    async def find_hands(request: Request) -> Response:
        arrived, request_id = request.scope["state"]["arrived"], request.scope["state"]["request_id"]
        asked_for = request.headers.get(MODEL_HEADER)
        with (
            observer.in_flight(),
            observed_image(
                observer, clock, since=arrived, asked_for=asked_for, disconnected=(ClientDisconnect,)
            ) as outcome,
        ):
            media_type = choose_media_type(request.headers.get("accept"))
            deadline, client_id = _deadline(request), client_id_from(request.headers.get(CLIENT_HEADER), CLIENT_HEADER)
            given = await read_image(
                request,
                request.query_params.getlist("roi") if request.scope["query_string"] else (),
                max_body_bytes=policy.max_body_bytes,
                max_rois=policy.max_rois,
            )
            estimate = await _unless_sender_leaves(
                request,
                predictor.estimate(
                    EstimateRequest(
                        image=given.image,
                        deadline=deadline,
                        rois=given.rois,
                        asked_for=asked_for,
                        client_id=client_id,
                    )
                ),
            )
            outcome.model = estimate.model
            headers = {MODEL_HEADER: served_by(estimate.model)}
            if media_type == _JSON:
                return Response(hand_pose_json(estimate, request_id), headers=headers, media_type=_JSON)
            async with decoder.open(given.image, deadline=deadline) as image:
                picture = await image.apply(picture_with_hands, estimate.hands, media_type)
            count_answer(request.scope, len(picture))
            return Response(picture, headers=headers, media_type=media_type)

    @router.post("/v1/hand-pose:batch", response_model=Batch, **openapi.HAND_POSE_BATCH)
    async def find_hands_in_batch(request: Request) -> Response:
        arrived, request_id = request.scope["state"]["arrived"], request.scope["state"]["request_id"]
        asked_for = request.headers.get(MODEL_HEADER)

        async def estimate(index: int, image: bytes, deadline: float, client_id: str | None) -> Estimate:
            with (
                observer.part("image", index=index),
                observed_image(observer, clock, since=arrived, asked_for=asked_for) as outcome,
            ):
                if not image:
                    raise InvalidInputError("the file is empty", code="empty_image")
                wanted = EstimateRequest(
                    image=image, deadline=deadline, asked_for=asked_for, client_id=client_id, priority=Priority.BULK
                )
                result = await predictor.estimate(wanted)
                outcome.model = result.model
                return result

        async def answer(index: int, image: bytes, deadline: float, client_id: str | None) -> BatchItem:
            try:
                result = hand_pose(await estimate(index, image, deadline, client_id), request_id)
            except Exception as error:  # noqa: BLE001 -- one image's failure must not take the others with it
                return _failed_item(index, as_service_error(error), request)
            return BatchItem(index=index, status=200, result=result)

        with observer.in_flight():
            with observed_failure(
                observer, clock, since=arrived, asked_for=asked_for, disconnected=(ClientDisconnect,)
            ):
                deadline, client_id = (
                    _deadline(request),
                    client_id_from(request.headers.get(CLIENT_HEADER), CLIENT_HEADER),
                )
                images = await read_images(
                    request, max_body_bytes=policy.max_body_bytes, max_images=policy.max_batch_images
                )
                charge(len(images), counted=1)
            answers = (answer(index, image, deadline, client_id) for index, image in enumerate(images))
            items = await _unless_sender_leaves(request, _all(answers))
        batch = Batch(request_id=request_id, results=items)
        return Response(batch.model_dump_json(exclude_unset=True), media_type=_JSON)

    def _deadline(request: Request) -> float:
        timeout_s = parse_timeout(
            request.headers.get(TIMEOUT_HEADER), default_s=policy.default_deadline_s, max_s=policy.max_deadline_s
        )
        arrived: float = request.scope["state"]["arrived"]
        return arrived + timeout_s

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
            raise UnavailableError(reason, code="not_ready", retry_after_s=_RETRY_WHEN_NOT_READY_S)
        return Status(status="ready")

    if metrics is not None:

        @router.get("/metrics", tags=["operation"], response_class=Response, **openapi.METRICS)
        async def show_metrics(request: Request) -> Response:
            body, media_type = metrics(request.headers.get("accept"))
            return Response(body, media_type=media_type)

    return router


def _failed_item(index: int, error: ServiceError, request: Request) -> BatchItem:
    problem = reported_problem(error, request)
    return BatchItem(index=index, status=problem.status, problem=problem)


async def _all(answers: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    return await asyncio.gather(*answers)


async def _unless_sender_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; if the sender goes away first, the work is cancelled.

    Args:
        request: its body has been read, so that the next thing it receives is the end of the connection.
        work: what to do.

    Raises:
        ClientDisconnect: the sender has gone.
    """
    # The work is awaited here: whatever it holds (a place in a queue) is given back before the request counts as ended,
    # and a task of its own would cost every request a turn of the event loop.
    answering = asyncio.current_task()
    assert answering is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        answering.cancel()

    watching: asyncio.Task[None] | None = None

    def begin() -> None:
        nonlocal watching
        watching = loop.create_task(watch())

    loop = asyncio.get_running_loop()
    beginning = loop.call_soon(begin)  # a turn later: the work may have a batch to send off in this one
    try:
        return await work
    except asyncio.CancelledError as error:
        if left and answering.uncancel() == 0:
            raise ClientDisconnect from error
        raise
    finally:
        beginning.cancel()
        if watching is not None:
            watching.cancel()
