"""Messages to values: what is absent takes the default, what is zero stays zero."""

import pytest

from service.pose.tracking import OneEuro
from service.rpc.convert import to_stream_options
from service.rpc.handpose.v1 import hand_pose_pb2 as pb


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        (pb.OneEuro(), OneEuro()),
        (pb.OneEuro(beta=0.0), OneEuro(beta=0.0)),
        (pb.OneEuro(min_cutoff_hz=2.0, derivative_cutoff_hz=3.0), OneEuro(2.0, OneEuro().beta, 3.0)),
    ],
)
def test_parameters_of_the_filter_that_are_absent_take_the_default(sent: pb.OneEuro, meant: OneEuro) -> None:
    assert to_stream_options(pb.StreamOptions(smoothing=sent), None).smoothing == meant
