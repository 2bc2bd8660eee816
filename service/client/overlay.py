"""Pictures with hands drawn on them: skeleton, box, side and score."""

from PIL import Image

from service.client.images import ImageLike, to_file_bytes
from service.client.types import Estimate
from service.pose.drawing import HandTag, draw_hand
from service.pose.images import decode_image


def draw(image: ImageLike, estimate: Estimate) -> Image.Image:
    """The upright picture with every hand of the estimate on it, as a new RGB image.

    Args:
        image: what the estimate was made from.
        estimate: its hands.

    Raises:
        ImageError: the image does not decode.
        ValueError: the image has another size than the one the estimate was made from.
    """
    decoded = decode_image(to_file_bytes(image))
    if (decoded.width, decoded.height) != estimate.image_size:
        raise ValueError(
            f"the estimate is of an image of {estimate.image_size}, not of {(decoded.width, decoded.height)} pixels"
        )
    picture = decoded.pixels
    for hand in estimate.hands:
        tag = HandTag(hand.score, hand.handedness.label if hand.handedness else None)
        picture = draw_hand(picture, hand.points, hand.scores, tag)
    return picture
