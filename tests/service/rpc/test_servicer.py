"""HandPoseService over a real connection: answers, metadata, errors, deadlines, cancelling."""

import asyncio
import math
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from service.inference.errors import InternalError, OverloadedError, UnavailableError
from service.inference.model_queue import BatchingPolicy
from service.inference.ports import DropReason
from service.pose.keypoints import KEYPOINT_NAMES
from service.rpc.handpose.v1 import hand_pose_pb2 as pb
from service.rpc.servicer import RpcPolicy
from tests.support.backend import detection, spread_keypoints
from tests.support.gateway import Gateway, details_of, refusal_of
from tests.support.images import image_bytes, picture
from tests.support.models import INPUT_SIZE
from tests.support.waiting import until

PHOTO = image_bytes(picture(INPUT_SIZE, INPUT_SIZE))


def numbers(response: pb.EstimateResponse) -> list[tuple[float, float]]:
    return [(point.x, point.y) for point in response.hands[0].keypoints]


async def test_a_picture_that_is_one_hand_gets_its_named_keypoints(gateway: Gateway) -> None:
    answer = await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO, whole=True))

    (hand,) = answer.hands
    assert [point.name for point in hand.keypoints] == list(KEYPOINT_NAMES)
    np.testing.assert_allclose(numbers(answer), spread_keypoints(INPUT_SIZE), atol=0.1)
    assert hand.keypoints[3].x_norm == pytest.approx(hand.keypoints[3].x / INPUT_SIZE)
    assert (answer.image.width, answer.image.height) == (INPUT_SIZE, INPUT_SIZE)
    assert (answer.model.name, answer.model.version, answer.model.routed_by) == ("cpm_lightweight", 1, "default")
    assert answer.timings.total_ms > 0
    assert hand.score == pytest.approx(1.0, abs=0.1)
    assert hand.box == pb.Box(width=INPUT_SIZE, height=INPUT_SIZE)
    assert not hand.HasField("handedness")
    assert not gateway.backend.searches


async def test_hands_that_are_found_come_best_first_with_side_rotation_and_a_tight_box(gateway: Gateway) -> None:
    gateway.backend.detections = (
        detection(0.25, 0.25, 0.2, score=0.81, right=0.25),
        detection(0.75, 0.75, 0.2, right=0.875),
    )

    answer = await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO))

    assert [each.handedness.label for each in answer.hands] == ["right", "left"]
    assert [each.handedness.score for each in answer.hands] == pytest.approx([0.875, 0.75])
    assert [each.score for each in answer.hands] == pytest.approx([1.0, 0.9], abs=0.05)
    for hand in answer.hands:
        xs, ys = ([getattr(point, axis) for point in hand.keypoints] for axis in "xy")
        assert (hand.box.x, hand.box.width) == pytest.approx((min(xs), max(xs) - min(xs)))
        assert (hand.box.y, hand.box.height) == pytest.approx((min(ys), max(ys) - min(ys)))
        wrist, middle_mcp = hand.keypoints[0], hand.keypoints[9]
        turn = math.degrees(math.atan2(middle_mcp.x - wrist.x, wrist.y - middle_mcp.y))
        assert hand.rotation_degrees == pytest.approx(turn)
    assert answer.timings.detection_ms > 0


@pytest.mark.parametrize(
    ("asked", "scores"),
    [
        ({}, [0.9, 0.8, 0.7, 0.6]),
        ({"max_hands": 16}, [0.9, 0.8, 0.7, 0.6, 0.5]),
        ({"max_hands": 1}, [0.9]),
        ({"min_score": 0.75}, [0.9, 0.8]),
        ({"min_score": 1.0}, []),
        ({"max_hands": 16, "min_score": 0.0}, [0.9, 0.8, 0.7, 0.6, 0.5, 0.35]),
    ],
    ids=str,
)
async def test_as_many_hands_as_asked_for_are_found_that_score_enough(
    gateway: Gateway, asked: dict[str, Any], scores: list[float]
) -> None:
    # The keypoints of every hand score nearly 1.
    places = [(0.2, 0.2), (0.5, 0.2), (0.8, 0.2), (0.2, 0.8), (0.5, 0.8), (0.8, 0.8)]
    wanted = (0.9, 0.8, 0.7, 0.6, 0.52, 0.36)
    gateway.backend.detections = [
        detection(x, y, 0.15, score=score**2) for (x, y), score in zip(places, wanted, strict=True)
    ]

    answer = await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO, **asked))

    assert [each.score for each in answer.hands] == pytest.approx(scores, abs=0.04)


async def test_a_picture_without_a_hand_is_answered_with_none(gateway: Gateway) -> None:
    gateway.backend.detections = ()

    answer = await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO))
    batch = await gateway.stub().EstimateBatch(
        pb.EstimateBatchRequest(requests=[pb.EstimateRequest(image=PHOTO), pb.EstimateRequest(image=PHOTO, whole=True)])
    )

    assert (len(answer.hands), answer.model.name, answer.image.width) == (0, "cpm_lightweight", INPUT_SIZE)
    assert [len(each.estimate.hands) for each in batch.results] == [0, 1]


async def test_without_a_detector_rois_and_whole_pictures_are_answered_all_the_same(gateway: Gateway) -> None:
    gateway.backend.without_detector = True
    roi = pb.Box(width=60, height=60)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO))
    whole = await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO, whole=True))
    of_roi = await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO, rois=[roi]))

    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert details_of(caught.value).info.metadata["code"] == "no_detector"
    assert (len(whole.hands), len(of_roi.hands)) == (1, 1)


async def test_rois_are_answered_in_their_order(gateway: Gateway) -> None:
    rois = [pb.Box(x=0, y=0, width=60, height=60), pb.Box(x=60, y=60, width=60, height=60)]

    answer = await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO, rois=rois))

    assert [hand.box for hand in answer.hands] == rois


@pytest.mark.parametrize("variant", ["standard", "lightweight"])
async def test_metadata_chooses_the_model_and_says_which_served(gateway: Gateway, variant: str) -> None:
    call = gateway.stub().Estimate(
        pb.EstimateRequest(image=PHOTO), metadata=(("x-model-variant", variant), ("x-request-id", "photo-7"))
    )

    answer, headers = await call, dict(await call.initial_metadata())

    assert (answer.model.variant, answer.model.routed_by, answer.request_id) == (variant, "header", "photo-7")
    assert (headers["x-model-variant"], headers["x-request-id"]) == (f"{variant}@1", "photo-7")


@pytest.mark.parametrize("unfit", ["", "two words", "x" * 129])
async def test_a_request_without_an_id_that_is_fit_for_a_log_gets_one(gateway: Gateway, unfit: str) -> None:
    metadata = (("x-request-id", unfit),)

    answers = [await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO), metadata=metadata) for _ in range(2)]

    assert len({answer.request_id for answer in answers} - {"", unfit}) == 2


@pytest.mark.parametrize(
    ("request_message", "variant", "status", "code"),
    [
        (pb.EstimateRequest(), "", grpc.StatusCode.INVALID_ARGUMENT, "empty_image"),
        (pb.EstimateRequest(image=b"%PDF-1.7"), "", grpc.StatusCode.INVALID_ARGUMENT, "unsupported_image_format"),
        (pb.EstimateRequest(image=PHOTO[:60]), "", grpc.StatusCode.INVALID_ARGUMENT, "undecodable_image"),
        (
            pb.EstimateRequest(image=PHOTO, rois=[pb.Box(x=1000, y=0, width=60, height=60)]),
            "",
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_roi",
        ),
        (pb.EstimateRequest(image=PHOTO, max_hands=0), "", grpc.StatusCode.INVALID_ARGUMENT, "invalid_option"),
        (pb.EstimateRequest(image=PHOTO, min_score=1.1), "", grpc.StatusCode.INVALID_ARGUMENT, "invalid_option"),
        (
            pb.EstimateRequest(image=PHOTO, whole=True, rois=[pb.Box(x=0, y=0, width=60, height=60)]),
            "",
            grpc.StatusCode.INVALID_ARGUMENT,
            "invalid_option",
        ),
        (pb.EstimateRequest(image=PHOTO), "enormous", grpc.StatusCode.NOT_FOUND, "unknown_variant"),
        (pb.EstimateRequest(image=PHOTO), "standard@9", grpc.StatusCode.NOT_FOUND, "unknown_version"),
    ],
)
async def test_a_wrong_request_is_told_what_was_wrong(
    gateway: Gateway, request_message: pb.EstimateRequest, variant: str, status: grpc.StatusCode, code: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub().Estimate(request_message, metadata=(("x-model-variant", variant), ("x-request-id", "r-1")))

    assert caught.value.code() == status
    details = details_of(caught.value)
    assert details.info.metadata["code"] == code
    assert details.info.metadata["request_id"] == "r-1"
    assert (details.bad_request is not None) == (code in ("invalid_roi", "invalid_option"))


@pytest.mark.parametrize(
    ("failure", "status", "retry_s"),
    [
        (OverloadedError("busy", retry_after_s=0.75), grpc.StatusCode.RESOURCE_EXHAUSTED, 0.75),
        (UnavailableError("down", retry_after_s=2.0), grpc.StatusCode.UNAVAILABLE, 2.0),
        (InternalError("secret"), grpc.StatusCode.INTERNAL, None),
        (RuntimeError("secret"), grpc.StatusCode.INTERNAL, None),
    ],
)
async def test_failures_of_the_model_become_statuses_with_a_time_to_retry(
    gateway: Gateway, failure: Exception, status: grpc.StatusCode, retry_s: float | None
) -> None:
    gateway.backend.failure = failure

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO))

    details = details_of(caught.value)
    assert caught.value.code() == status
    assert (details.retry.retry_delay.ToMilliseconds() / 1000 if details.retry else None) == retry_s
    assert "secret" not in f"{caught.value.details()}{details.status}"


@pytest.mark.parametrize("name", ["x-model-varient", "x-model-", "x-request-timeout-ms"])
async def test_metadata_that_looks_like_ours_and_is_not_read_is_refused_with_what_is(
    gateway: Gateway, name: str
) -> None:
    wrong = ((name, "7"),)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO), metadata=wrong)
    of_stream = await refusal_of(gateway.stub().EstimateStream(metadata=wrong))

    for error in (caught.value, of_stream):
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert details_of(error).info.metadata["code"] == "unknown_metadata"
        assert "x-model-variant, x-client-id, x-request-id" in (error.details() or "")


async def test_metadata_of_proxies_is_let_pass(gateway: Gateway) -> None:
    others = (("x-forwarded-for", "192.0.2.1"), ("x-request-start", "t=1"), ("x-envoy-attempt-count", "1"))

    assert (await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO), metadata=others)).hands


async def test_a_full_queue_answers_at_once_and_says_when_to_retry(workers: ThreadPoolExecutor) -> None:
    gateway = Gateway(workers, batching=BatchingPolicy(max_queue=1, max_batch_size=1))
    await gateway.start()
    gateway.backend.hold()
    waiting = gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO))
    await gateway.backend.arrived()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO))

    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(caught.value).info.metadata["code"] == "overloaded"
    assert details_of(caught.value).retry.retry_delay.ToMilliseconds() > 0
    gateway.backend.release()
    await waiting
    await gateway.stop()


@pytest.mark.parametrize("oversize", [1000, 1_000_000])
async def test_a_message_that_is_too_large_is_refused(workers: ThreadPoolExecutor, oversize: int) -> None:
    gateway = Gateway(workers, max_body_bytes=10_000)
    await gateway.start()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub().Estimate(pb.EstimateRequest(image=bytes(10_000 + oversize)))

    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    if oversize < 100_000:
        assert details_of(caught.value).info.metadata["code"] == "body_too_large"
    await gateway.stop()


async def test_an_image_of_too_many_pixels_is_refused(workers: ThreadPoolExecutor) -> None:
    gateway = Gateway(workers, max_pixels=1000)
    await gateway.start()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO))

    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(caught.value).info.metadata["code"] == "too_many_pixels"
    await gateway.stop()


async def test_a_deadline_that_passes_frees_the_queue(gateway: Gateway) -> None:
    gateway.backend.hold()
    running = gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO))
    await gateway.backend.arrived()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO), timeout=1.0)

    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: gateway.observer.depths[-1][1] == 1)
    await until(lambda: len(gateway.observer.drops) == 1)
    gateway.backend.release()
    await running


async def test_the_servers_own_limit_on_time_answers_with_a_rich_error(workers: ThreadPoolExecutor) -> None:
    gateway = Gateway(workers, policy=RpcPolicy(default_deadline_s=0.05))
    await gateway.start()
    gateway.backend.hold()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO))

    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert details_of(caught.value).info.metadata["code"] == "deadline_exceeded"
    await gateway.stop()


async def test_cancelling_frees_the_queue_at_once(gateway: Gateway) -> None:
    gateway.backend.hold()
    running = gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO, whole=True))
    await gateway.backend.arrived()
    waiting = gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO, whole=True))
    await until(lambda: gateway.observer.depths[-1][1] == 2)

    waiting.cancel()

    await until(lambda: gateway.observer.depths[-1][1] == 1)
    assert [reason for _, reason in gateway.observer.drops] == [DropReason.CANCELLED]
    gateway.backend.release()
    await running
    assert len(gateway.backend.calls) == 1, "the cancelled request never reached the model"


async def test_a_client_that_vanishes_frees_the_queue(gateway: Gateway) -> None:
    gateway.backend.hold()
    running = gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO, whole=True))
    await gateway.backend.arrived()
    channel = gateway.channel()
    method = channel.unary_unary(
        "/handpose.v1.HandPoseService/Estimate",
        request_serializer=pb.EstimateRequest.SerializeToString,
        response_deserializer=pb.EstimateResponse.FromString,
    )
    call = method(pb.EstimateRequest(image=PHOTO, whole=True))
    await until(lambda: gateway.observer.depths[-1][1] == 2)

    await channel.close(None)

    await until(lambda: gateway.observer.depths[-1][1] == 1 and gateway.requests.now_in_flight == 1)
    assert call.done()
    gateway.backend.release()
    await running


async def test_a_batch_answers_each_image_with_a_result_or_a_problem(gateway: Gateway) -> None:
    requests = [
        pb.EstimateRequest(image=PHOTO),
        pb.EstimateRequest(image=b"no image"),
        pb.EstimateRequest(image=PHOTO, rois=[pb.Box(x=10, y=10, width=50, height=50)]),
    ]

    answer = await gateway.stub().EstimateBatch(pb.EstimateBatchRequest(requests=requests))

    assert [result.WhichOneof("outcome") for result in answer.results] == ["estimate", "problem", "estimate"]
    assert answer.results[1].problem.code == "unsupported_image_format"
    assert answer.results[1].problem.status == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert answer.results[2].estimate.hands[0].box.width == 50


@pytest.mark.parametrize(("images", "code"), [(0, "missing_image"), (3, "too_many_images")])
async def test_a_batch_of_none_or_too_many_is_refused(workers: ThreadPoolExecutor, images: int, code: str) -> None:
    gateway = Gateway(workers, policy=RpcPolicy(max_batch_images=2))
    await gateway.start()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub().EstimateBatch(pb.EstimateBatchRequest(requests=images * [pb.EstimateRequest(image=PHOTO)]))

    assert details_of(caught.value).info.metadata["code"] == code
    await gateway.stop()


async def test_models_are_listed_with_versions_and_labels(gateway: Gateway) -> None:
    answer = await gateway.stub().ListModels(pb.ListModelsRequest())

    assert [(model.name, model.variant, model.version, list(model.labels)) for model in answer.models] == [
        ("cpm_lightweight", "lightweight", 1, ["stable"]),
        ("cpm_standard", "standard", 1, ["stable"]),
    ]
    assert {(model.input_size, model.stride) for model in answer.models} == {(INPUT_SIZE, 8)}


async def test_every_image_is_reported_with_its_code(gateway: Gateway) -> None:
    await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO))
    await gateway.stub().EstimateBatch(pb.EstimateBatchRequest(requests=[pb.EstimateRequest(image=b"x")]))

    assert [(routed_to and routed_to[0], code) for routed_to, _, code in gateway.requests.images] == [
        ("lightweight", "ok"),
        ("lightweight", "unsupported_image_format"),
    ]
    assert gateway.requests.now_in_flight == 0


async def test_each_call_has_a_line_in_the_log_with_its_ids_and_how_it_ended(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = (("x-request-id", "find-me"), ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"))
    with caplog.at_level("INFO", "service.rpc.servicer"):
        await gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO), metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError):
            await gateway.stub().Estimate(pb.EstimateRequest(image=b"x"), metadata=metadata)
        gateway.backend.hold()
        leaving = gateway.stub().Estimate(pb.EstimateRequest(image=PHOTO), metadata=metadata)
        await gateway.backend.arrived(2)
        leaving.cancel()
        await until(lambda: len(caplog.records) == 3)

    assert {record.getMessage() for record in caplog.records} == {"handpose.v1.HandPoseService/Estimate"}
    said = [record.__dict__ for record in caplog.records]
    assert [each["code"] for each in said] == ["ok", "unsupported_image_format", "client_gone"]
    assert {each["request_id"] for each in said} == {"find-me"}


# Streams


def message(index: int, image: bytes = PHOTO, **fields: object) -> pb.EstimateStreamRequest:
    return pb.EstimateStreamRequest(frame=pb.Frame(image=image, id=index, **fields))  # type: ignore[arg-type]


async def frames(count: int) -> AsyncIterator[pb.EstimateStreamRequest]:
    for index in range(count):
        yield message(index)


async def test_a_stream_answers_every_frame_in_order(gateway: Gateway) -> None:
    answers = [answer async for answer in gateway.stub().EstimateStream(frames(20))]

    assert [answer.frame_id for answer in answers] == list(range(20))


async def test_a_stream_follows_the_hand_that_it_found(gateway: Gateway) -> None:
    first, second = [answer async for answer in gateway.stub().EstimateStream(frames(2))]

    assert (first.tracked, second.tracked) == (False, True)
    assert list(first.track_ids) == list(second.track_ids) == [1]


async def test_stream_options_turn_tracking_off_and_name_the_model(gateway: Gateway) -> None:
    async def messages() -> AsyncIterator[pb.EstimateStreamRequest]:
        yield pb.EstimateStreamRequest(options=pb.StreamOptions(tracking=False))
        yield message(7)
        yield message(8)

    call = gateway.stub().EstimateStream(messages(), metadata=(("x-model-variant", "standard"),))
    answers = [answer async for answer in call]

    assert [(answer.frame_id, answer.tracked) for answer in answers] == [(7, False), (8, False)]
    assert answers[0].estimate.model.variant == "standard"


async def test_a_broken_frame_gets_a_problem_and_the_stream_goes_on(gateway: Gateway) -> None:
    async def messages() -> AsyncIterator[pb.EstimateStreamRequest]:
        yield message(0)
        yield message(1, PHOTO[:60])
        yield message(2)

    answers = [answer async for answer in gateway.stub().EstimateStream(messages())]

    assert [answer.WhichOneof("outcome") for answer in answers] == ["estimate", "problem", "estimate"]
    assert answers[1].problem.code == "undecodable_image"


@pytest.mark.parametrize(
    ("messages", "variant", "code"),
    [
        ([message(0), pb.EstimateStreamRequest(options=pb.StreamOptions())], "", "not_a_frame"),
        ([message(0)], "enormous", "unknown_variant"),
    ],
)
async def test_a_stream_that_is_used_wrongly_ends_with_its_code(
    gateway: Gateway, messages: list[pb.EstimateStreamRequest], variant: str, code: str
) -> None:
    call = gateway.stub().EstimateStream(metadata=(("x-model-variant", variant),))

    assert details_of(await refusal_of(call, *messages)).info.metadata["code"] == code


@pytest.mark.parametrize(
    "options",
    [
        pb.StreamOptions(smoothing=pb.OneEuro(beta=-1)),
        pb.StreamOptions(smoothing=pb.OneEuro(min_cutoff_hz=math.inf)),
        pb.StreamOptions(frame_timeout={"seconds": -1}),
        pb.StreamOptions(max_hands=17),
        pb.StreamOptions(min_score=-0.5),
    ],
)
async def test_impossible_stream_options_are_refused(gateway: Gateway, options: pb.StreamOptions) -> None:
    refusal = await refusal_of(gateway.stub().EstimateStream(), pb.EstimateStreamRequest(options=options))

    assert details_of(refusal).info.metadata["code"] == "invalid_options"


@pytest.mark.parametrize("time_s", [math.nan, math.inf])
async def test_a_frame_whose_time_is_no_number_ends_the_stream(gateway: Gateway, time_s: float) -> None:
    refusal = await refusal_of(gateway.stub().EstimateStream(), message(0, time_s=time_s))

    assert details_of(refusal).info.metadata["code"] == "invalid_frame_description"
    assert "time_s" in (refusal.details() or "")


async def test_an_empty_stream_ends_well(gateway: Gateway) -> None:
    assert [answer async for answer in gateway.stub().EstimateStream(frames(0))] == []


async def test_a_streaming_client_that_vanishes_is_forgotten(gateway: Gateway) -> None:
    gateway.backend.hold()
    channel = gateway.channel()
    call = channel.stream_stream(
        "/handpose.v1.HandPoseService/EstimateStream",
        request_serializer=pb.EstimateStreamRequest.SerializeToString,
        response_deserializer=pb.EstimateStreamResponse.FromString,
    )()
    await call.write(message(0))
    await gateway.backend.arrived()
    assert gateway.streams.number_open == 1

    async with asyncio.timeout(10):
        await channel.close(None)
        await until(lambda: gateway.streams.number_open == 0)

    await until(lambda: gateway.observer.depths[-1][1] == 0)
    assert gateway.requests.now_in_flight == 0


async def test_drain_answers_accepted_frames_and_ends_streams_as_unavailable(gateway: Gateway) -> None:
    gateway.backend.hold()
    call = gateway.stub().EstimateStream()
    await call.write(message(0))
    await gateway.backend.arrived()

    draining = asyncio.create_task(gateway.streams.drain())
    await asyncio.sleep(0)
    gateway.backend.release()
    answer = await call.read()
    await draining
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()

    assert answer.frame_id == 0
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert details_of(caught.value).retry.retry_delay.ToMilliseconds() > 0
