"""Everything that decides where a keypoint is: pure functions on arrays, shared with the trainer."""
