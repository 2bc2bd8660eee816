"""The stand-in does what a real TensorFlow Serving 2.19.1 was seen to do: a test for each line of what was measured."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from signal import SIGTERM
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from grpc import StatusCode

from deploy.stand_in.process import StandIn
from deploy.stand_in.repository import add_version, config_text
from service.backends.tensorflow_serving.client import Endpoint
from service.backends.tensorflow_serving.failures import CallError
from service.backends.tensorflow_serving.tensors import from_tensor, predict_request
from service.backends.tensorflow_serving.wire import serving_pb2 as wire
from tests.support.models import INPUT_SIZE, served_model
from tests.support.waiting import until

LIGHTWEIGHT = "cpm_lightweight"
_State = wire.ModelVersionStatus.State


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """Lightweight 1 (stable), in batches of up to 8, of which one may wait, and with 8 threads."""
    repository = tmp_path_factory.mktemp("model_repo")
    add_version(repository, "lightweight", 1)
    config = config_text(repository, {"lightweight": ((1,), {"stable": 1})})
    arguments = ("--max-batch-size", "8", "--max-enqueued-batches", "1", "--grpc-max-threads", "8")
    with StandIn(repository, config, arguments=arguments) as running:
        yield running


@pytest.fixture
def stand_in(shared: StandIn) -> Iterator[StandIn]:
    """The shared one, with all faults mended afterwards."""
    yield shared
    shared.order(slow_s=0.0, hang="", unavailable=False, labels_unknown=False, out_of_memory=False, threads_message="")


@pytest.fixture
async def endpoint(stand_in: StandIn) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(stand_in.address)
    yield endpoint
    await endpoint.aclose()


def request(images: int = 1, size: int = INPUT_SIZE) -> wire.PredictRequest:
    made = predict_request(served_model(), [np.full((size, size, 3), 90, np.uint8)] * max(images, 1))
    if not images:
        made.inputs["image"].tensor_content = b""
        made.inputs["image"].tensor_shape.dim[0].size = 0
    return made


def spoilt(spoil: Callable[[wire.PredictRequest], Any]) -> wire.PredictRequest:
    made = request()
    spoil(made)
    return made


async def failure(endpoint: Endpoint, asked: wire.PredictRequest) -> tuple[StatusCode, str]:
    with pytest.raises(CallError) as caught:
        await endpoint.predict(asked, 5.0, ())
    return caught.value.code, caught.value.details


async def status(endpoint: Endpoint, name: str = LIGHTWEIGHT, version: int | None = None) -> dict[int, Any]:
    spec = wire.ModelSpec(name=name)
    if version is not None:
        spec.version.value = version
    reply = await endpoint.status(wire.GetModelStatusRequest(model_spec=spec), 5.0)
    return {each.version: each for each in reply.model_version_status}


# Threads


@pytest.mark.parametrize("message", ["", "Server Threadpool Exhausted"])
async def test_calls_beyond_the_threads_are_refused_status_polls_too(
    stand_in: StandIn, endpoint: Endpoint, message: str
) -> None:
    stand_in.order(hang="predict", threads_message=message)
    before = stand_in.report()["counts"].get("Predict", 0)
    held = [asyncio.create_task(endpoint.predict(request(), 30.0, ())) for _ in range(7)]  # one is the server's own
    await until(lambda: stand_in.report()["counts"].get("Predict", 0) == before + 7)

    assert await failure(endpoint, request()) == (StatusCode.RESOURCE_EXHAUSTED, message)
    with pytest.raises(CallError) as caught:
        await status(endpoint)
    assert (caught.value.code, caught.value.details) == (StatusCode.RESOURCE_EXHAUSTED, message)

    stand_in.order(hang="")
    await asyncio.gather(*held)
    assert (await status(endpoint))[1].state == _State.AVAILABLE


async def test_an_empty_batch_never_returns_and_holds_a_thread(stand_in: StandIn, endpoint: Endpoint) -> None:
    with pytest.raises(CallError) as caught:
        await endpoint.predict(request(images=0), 0.3, ())
    assert caught.value.code is StatusCode.DEADLINE_EXCEEDED


# What a request is refused with


def _set_dtype(asked: wire.PredictRequest) -> None:
    asked.inputs["image"].dtype = wire.DT_FLOAT


def _set_channels(asked: wire.PredictRequest) -> None:
    asked.inputs["image"].tensor_shape.dim[3].size = 4


def _cut_content(asked: wire.PredictRequest) -> None:
    asked.inputs["image"].tensor_content = b"123"


def _rename_input(asked: wire.PredictRequest) -> None:
    asked.inputs["keras_tensor_4"].CopyFrom(asked.inputs["image"])


def _rename_output(asked: wire.PredictRequest) -> None:
    asked.output_filter.append("maps")


def _ask_for_label(asked: wire.PredictRequest) -> None:
    asked.model_spec.version_label = "nightly"


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (
            lambda asked: setattr(asked.model_spec, "signature_name", "x"),
            StatusCode.FAILED_PRECONDITION,
            'Serving signature key "x" not found.',
        ),
        (_set_dtype, StatusCode.INVALID_ARGUMENT, "Expects arg[0] to be uint8"),
        (_set_channels, StatusCode.INVALID_ARGUMENT, "depth"),
        (_cut_content, StatusCode.INVALID_ARGUMENT, "bytes"),
        (lambda asked: asked.inputs.clear(), StatusCode.INVALID_ARGUMENT, "Missing but required: {image}"),
        (_rename_input, StatusCode.INVALID_ARGUMENT, "input tensor alias not found in signature: keras_tensor_4"),
        (_rename_output, StatusCode.INVALID_ARGUMENT, "output tensor alias not found in signature: maps"),
        (lambda asked: setattr(asked.model_spec, "name", ""), StatusCode.INVALID_ARGUMENT, "Missing ModelSpec"),
        (lambda asked: asked.ClearField("model_spec"), StatusCode.INVALID_ARGUMENT, "Missing ModelSpec"),
        (lambda asked: setattr(asked.model_spec, "name", "cpm_x"), StatusCode.NOT_FOUND, "Servable not found"),
        (
            lambda asked: setattr(asked.model_spec.version, "value", 9),
            StatusCode.NOT_FOUND,
            "Servable not found for request: Specific(cpm_lightweight, 9)",
        ),
        (_ask_for_label, StatusCode.INVALID_ARGUMENT, "Unrecognized servable version label: nightly"),
    ],
)
async def test_a_request_that_does_not_fit_is_refused_as_the_real_server_does(
    endpoint: Endpoint, spoil: Callable[[wire.PredictRequest], Any], code: StatusCode, words: str
) -> None:
    found, details = await failure(endpoint, spoilt(spoil))
    assert found is code
    assert words in details


async def test_an_image_of_4_pixels_is_aborted(endpoint: Endpoint) -> None:
    assert (await failure(endpoint, request(size=4)))[0] is StatusCode.ABORTED


async def test_a_task_larger_than_the_largest_batch_is_refused_and_says_so(endpoint: Endpoint) -> None:
    code, details = await failure(endpoint, request(images=9))
    assert (code, details) == (
        StatusCode.INVALID_ARGUMENT,
        "Task size 9 is larger than maximum input batch size 8",
    )


async def test_sizes_that_meet_in_a_batch_fail_all_of_it(stand_in: StandIn, endpoint: Endpoint) -> None:
    stand_in.order(slow_s=0.3)
    first = asyncio.create_task(endpoint.predict(request(images=8), 5.0, ()))
    await until(lambda: stand_in.report()["running"] == 1)
    mixed = await asyncio.gather(failure(endpoint, request(size=32)), failure(endpoint, request(size=64)))
    assert {code for code, _ in mixed} == {StatusCode.FAILED_PRECONDITION}
    await first


async def test_a_full_queue_is_unavailable_and_says_how_full(stand_in: StandIn, endpoint: Endpoint) -> None:
    stand_in.order(slow_s=0.5)
    running = asyncio.create_task(endpoint.predict(request(images=8), 5.0, ()))
    await until(lambda: stand_in.report()["running"] == 1)
    waiting = asyncio.create_task(endpoint.predict(request(images=8), 5.0, ()))
    await until(lambda: stand_in.report()["waiting"] == 1)
    code, details = await failure(endpoint, request())
    assert code is StatusCode.UNAVAILABLE
    assert details.endswith("is full; currently 1 batches enqueued and max_enqueued_batches is 1")
    await asyncio.gather(running, waiting)


async def test_a_batch_that_expired_in_the_queue_is_exhausted(stand_in: StandIn, endpoint: Endpoint) -> None:
    stand_in.order(slow_s=0.5)
    running = asyncio.create_task(endpoint.predict(request(images=8), 5.0, ()))
    await until(lambda: stand_in.report()["running"] == 1)
    with pytest.raises(CallError) as caught:
        await endpoint.predict(request(), 0.1, ())
    assert caught.value.code in {StatusCode.RESOURCE_EXHAUSTED, StatusCode.DEADLINE_EXCEEDED}
    await running


async def test_labels_that_are_not_known_yet_are_unavailable(stand_in: StandIn, endpoint: Endpoint) -> None:
    stand_in.order(labels_unknown=True)
    asked = request()
    asked.model_spec.version_label = "stable"
    code, details = await failure(endpoint, asked)
    assert (code, details) == (StatusCode.UNAVAILABLE, "Model labels does not init yet....")


async def test_messages_have_line_breaks_and_tabs(stand_in: StandIn, endpoint: Endpoint) -> None:
    stand_in.order(out_of_memory=True)
    with pytest.raises(CallError, match="OOM when allocating") as caught:
        await endpoint.predict(request(), 5.0, ())
    sent = caught.value.__cause__.details()  # type: ignore[union-attr]  # gRPC's own error
    assert "\n\t [[" in sent
    assert "\n" not in str(caught.value)


async def test_answers_come_as_single_values(endpoint: Endpoint) -> None:
    reply = await endpoint.predict(request(), 5.0, ())
    output = reply.outputs["belief_maps"]
    assert (len(output.float_val), output.tensor_content) == ((INPUT_SIZE // 8) ** 2 * 22, b"")
    assert from_tensor(output).shape == (1, INPUT_SIZE // 8, INPUT_SIZE // 8, 22)


async def test_the_status_of_an_unknown_version_or_model_is_not_found(endpoint: Endpoint) -> None:
    for name, version in ((LIGHTWEIGHT, 9), ("cpm_x", None)):
        with pytest.raises(CallError) as caught:
            await status(endpoint, name, version)
        assert caught.value.code is StatusCode.NOT_FOUND


# Loading


async def reload(endpoint: Endpoint, config: str) -> None:
    await endpoint.reload(wire.ReloadConfigRequest(config=text_format.Parse(config, wire.ModelServerConfig())), 5.0)


async def test_a_broken_version_is_loading_through_its_retries_and_then_ends_with_a_reason(tmp_path: Path) -> None:
    add_version(tmp_path, "lightweight", 1)
    (add_version(tmp_path, "lightweight", 2) / "unloadable").touch()
    one, both = (config_text(tmp_path, {"lightweight": (versions, {})}) for versions in ((1,), (1, 2)))
    retries = ("--max-num-load-retries", "2", "--load-retry-interval-s", "0.2", "--poll-s", "0.5")
    with StandIn(tmp_path, one, arguments=retries) as server:
        endpoint = Endpoint(server.address)
        await reload(endpoint, both)
        clock = asyncio.get_running_loop()
        begun = clock.time()
        seen = await states_until(endpoint, 2, _State.END)
        assert clock.time() - begun >= 0.4
        ended = (await status(endpoint))[2].status
        assert (_State.LOADING in seen, ended.error_code) == (True, 11)
        assert "Could not find SavedModel" in ended.error_message

        # Repaired: the old end is told until the server looks at its folders, then it is tried again.
        (tmp_path / LIGHTWEIGHT / "2" / "unloadable").unlink()
        await reload(endpoint, one)
        await until(lambda: clock.time() - begun > 2.0)
        await reload(endpoint, both)
        assert (await status(endpoint))[2].state == _State.END
        seen = await states_until(endpoint, 2, _State.AVAILABLE)
        assert seen[0] == _State.END
        assert _State.START in seen
        await endpoint.aclose()


async def states_until(endpoint: Endpoint, version: int, last: int) -> list[int]:
    """The states that a version goes through, up to and with the last one after another."""
    seen: list[int] = []

    async def ended() -> bool:
        found = (await status(endpoint)).get(version)
        if found is not None and (not seen or seen[-1] != found.state):
            seen.append(found.state)
        return bool(seen) and seen[-1] == last

    await until(ended)
    return seen


def test_a_start_with_a_broken_version_ends_though_another_is_fine(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    add_version(tmp_path, "lightweight", 1)
    (add_version(tmp_path, "lightweight", 2) / "unloadable").touch()
    config = config_text(tmp_path, {"lightweight": ((1, 2), {"stable": 1})})
    with pytest.raises(ChildProcessError, match="status 1"):
        StandIn(tmp_path, config).start()
    assert "1 servable(s) did not become available" in capfd.readouterr().err


async def test_a_configured_version_without_a_folder_is_a_warning_and_no_state(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    add_version(tmp_path, "lightweight", 1)
    with StandIn(tmp_path, config_text(tmp_path, {"lightweight": ((1, 5), {})})) as server:
        endpoint = Endpoint(server.address)
        assert list(await status(endpoint)) == [1]
        await endpoint.aclose()
    assert "version 5 of servable cpm_lightweight" in capfd.readouterr().err


async def test_the_file_undoes_what_only_went_over_the_wire(tmp_path: Path) -> None:
    for version in (1, 2):
        add_version(tmp_path, "lightweight", version)
    one, both = (config_text(tmp_path, {"lightweight": (versions, {})}) for versions in ((1,), (1, 2)))
    with StandIn(tmp_path, one, arguments=("--config-poll-s", "1.0")) as server:
        endpoint = Endpoint(server.address)
        await reload(endpoint, both)
        assert (await states_until(endpoint, 2, _State.AVAILABLE))[-1] == _State.AVAILABLE
        assert (await states_until(endpoint, 2, _State.END))[-1] == _State.END
        await endpoint.aclose()


async def test_sigterm_ends_it_at_once_without_an_answer(tmp_path: Path) -> None:
    add_version(tmp_path, "lightweight", 1)
    with StandIn(tmp_path, config_text(tmp_path, {"lightweight": ((1,), {})})) as server:
        server.order(hang="predict")
        endpoint = Endpoint(server.address)
        asked = asyncio.create_task(endpoint.predict(request(), 10.0, ()))
        await until(lambda: server.report()["counts"].get("Predict") == 1)
        server.kill(signal=SIGTERM)
        with pytest.raises(CallError) as caught:
            await asked
        assert caught.value.code is StatusCode.UNAVAILABLE
        await endpoint.aclose()


async def test_calls_that_meet_the_end_of_a_connections_age_are_answered(tmp_path: Path) -> None:
    add_version(tmp_path, "lightweight", 1)
    config = config_text(tmp_path, {"lightweight": ((1,), {})})
    with StandIn(tmp_path, config, arguments=("--max-connection-age-ms", "50")) as server:
        endpoint = Endpoint(server.address)
        for _ in range(300):
            await endpoint.predict(request(), 10.0, ())
        await endpoint.aclose()
