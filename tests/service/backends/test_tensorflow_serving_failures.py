"""Each line of the table from TensorFlow Serving's status codes to the service's errors; the waits."""

import grpc
import pytest

from service.backends.tensorflow_serving.client import RetryPolicy, target_of
from service.backends.tensorflow_serving.failures import CallError, translate
from service.inference.errors import (
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    ServiceError,
    UnavailableError,
    UnknownModelError,
)

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "details", "meant", "worth_repeating"),
    [
        (Code.NOT_FOUND, "Servable not found for request: Specific(cpm_standard, 7)", UnknownModelError, False),
        (Code.INVALID_ARGUMENT, "Unrecognized servable version label: nightly", UnknownModelError, False),
        (Code.UNAVAILABLE, "Labels are not known yet", UnavailableError, True),
        (
            Code.UNAVAILABLE,
            "The batch scheduling queue to which this task was submitted is full",
            OverloadedError,
            True,
        ),
        (
            Code.RESOURCE_EXHAUSTED,
            "Run() timeout exceeded while waiting in batching queue",
            DeadlineExceededError,
            False,
        ),
        (Code.RESOURCE_EXHAUSTED, "OOM when allocating tensor with shape[8,64,256,256]", UnavailableError, True),
        (
            Code.INVALID_ARGUMENT,
            "Task size 9 is larger than maximum input batch size 8",
            InternalError,
            False,
        ),
        (Code.INVALID_ARGUMENT, "input tensor alias not found in signature: x", InternalError, False),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", DeadlineExceededError, False),
        (Code.UNAVAILABLE, "failed to connect to all addresses", UnavailableError, True),
        (Code.INTERNAL, "a bug", InternalError, False),
        (Code.UNKNOWN, "", InternalError, False),
    ],
)
def test_a_status_means_to_a_request_what_the_table_says(
    code: grpc.StatusCode, details: str, meant: type[ServiceError], worth_repeating: bool
) -> None:
    error = translate(CallError(code, details), "cpm_standard version 7")

    assert type(error) is meant
    assert (error.retry_after_s is not None) is worth_repeating
    assert not details or details not in error.detail  # what the model server says is for the log


def test_waits_grow_up_to_a_bound_and_are_never_all_the_same() -> None:
    policy = RetryPolicy(first_wait_s=0.1, longest_wait_s=0.5)

    assert [policy.wait_after(attempt, 1.0) for attempt in range(1, 6)] == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])
    assert policy.wait_after(1, 0.0) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("models:8500", "dns:///models:8500"),
        ("10.0.0.1:8500", "dns:///10.0.0.1:8500"),
        ("ipv4:10.0.0.1:8500,10.0.0.2:8500", "ipv4:10.0.0.1:8500,10.0.0.2:8500"),
    ],
)
def test_an_address_is_looked_up_unless_it_says_how_to_be_read(address: str, target: str) -> None:
    assert target_of(address) == target
