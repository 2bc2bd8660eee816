import pytest

from service.pose.keypoints import CHANNEL_COUNT, KEYPOINT_COUNT, KEYPOINT_NAMES, SKELETON_EDGES, finger_of


def test_there_are_21_distinct_keypoints_and_one_background_channel() -> None:
    assert len(set(KEYPOINT_NAMES)) == KEYPOINT_COUNT == 21
    assert CHANNEL_COUNT == 22


def test_each_finger_runs_from_base_to_tip() -> None:
    assert KEYPOINT_NAMES[0] == "wrist"
    assert KEYPOINT_NAMES[1:5] == ("thumb_cmc", "thumb_mcp", "thumb_ip", "thumb_tip")
    assert KEYPOINT_NAMES[5:9] == ("index_mcp", "index_pip", "index_dip", "index_tip")
    assert [name for name in KEYPOINT_NAMES if name.endswith("_tip")] == [KEYPOINT_NAMES[i] for i in (4, 8, 12, 16, 20)]


def test_the_skeleton_joins_every_keypoint_to_the_wrist() -> None:
    parent = {end: start for start, end in SKELETON_EDGES}
    assert len(SKELETON_EDGES) == len(parent) == 20
    for keypoint in range(1, KEYPOINT_COUNT):
        step = keypoint
        while step != 0:
            step = parent[step]


def test_edges_within_a_finger_stay_in_that_finger() -> None:
    for start, end in SKELETON_EDGES:
        assert start == 0 or finger_of(start) == finger_of(end)


@pytest.mark.parametrize("keypoint", [-1, 21])
def test_an_index_outside_the_schema_is_refused(keypoint: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.20"):
        finger_of(keypoint)
