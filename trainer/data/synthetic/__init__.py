"""Synthetic hands: rendered images with exact keypoints, boxes, masks, 3D points and cameras.

The parts, in the order in which a sample passes through them: `asset` (the body of the hand),
`shape`, `pose`, `skinning`, `scene` (what stands where), `lights`, `renderer` (OpenGL), `photometric`
(what a camera does to a picture), `annotate` (keypoints, visibility, boxes) and `writer`.
Nothing here trains or reads other data sets.
"""
