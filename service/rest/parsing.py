"""From an HTTP request to an image, regions and a deadline; every way to get it wrong has a code of its own.

Bodies are bounded while they are read. Nothing is decoded here but JSON, base64 and multipart; what the image is, is
found out by the predictor.
"""

import base64
import codecs
import io
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fastapi import Request
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from service.inference.errors import FieldError, InvalidInputError, TooLargeError, UnsupportedTypeError
from service.pose.geometry import Box
from service.rest.schemas import HandPoseRequest

MAX_JSON_BYTES: Final = 2 * 1024 * 1024
"""JSON is parsed whole, with the image in it as text; larger images are sent raw or as a form."""

IMAGE_FIELD: Final = "image"
ROI_FIELD: Final = "roi"

_MULTIPART: Final = "multipart/form-data"
_JSON: Final = "application/json"
_ANY_BYTES: Final = "application/octet-stream"
_ALLOWED: Final = (
    f"send an image file as the body (Content-Type: image/jpeg, image/png, ... or {_ANY_BYTES}),"
    f' as the field "{IMAGE_FIELD}" of {_MULTIPART}, or as base64 in {_JSON}: {{"{IMAGE_FIELD}": "..."}}'
)
_JSON_TOO_LARGE: Final = f" as {_JSON}; send the image file itself as the body, or as a form"
_MAX_TEXT_FIELD_BYTES: Final = 4096
_SHORT_JSON_BYTES: Final = 64 * 1024
_JSON_ITEMS: Final = 64  # values and objects that a request's JSON may have beside its rois' own
_JSON_ITEMS_OF_A_ROI: Final = 8
_LINK: Final = re.compile(r"\s*(?:[a-z][a-z0-9+.-]{0,15}:)?//|\s*(?:https?|ftp|file|blob|s3|gs):", re.IGNORECASE)
_URL_SAFE_TO_STANDARD: Final = str.maketrans("-_", "+/")
_DATA_URI: Final = re.compile(r"data:[^,]{0,256};base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageAndRois:
    """What a request's body and query say: the bytes of an image file, and boxes in pixels of the upright image."""

    image: bytes
    rois: tuple[Box, ...] = ()


async def read_image(request: Request, roi_texts: Sequence[str], *, max_body_bytes: int, max_rois: int) -> ImageAndRois:
    """Read the one image of a request, whichever of the three kinds its body is.

    Args:
        request: its body has not been read.
        roi_texts: the values of the query's `roi`.
        max_body_bytes: longest body.
        max_rois: text fields of a multipart body; their number is bounded while it is read.

    Raises:
        InvalidInputError, UnsupportedTypeError, TooLargeError: with a code that says which mistake it was.
        ClientDisconnect: the sender went away.
    """
    kind = _content_type(request)
    if kind == _MULTIPART:
        form = await _read_multipart(request, max_body_bytes, max_images=1, max_rois=max_rois)
        if not form.images[0]:
            raise InvalidInputError(f'the file in the field "{IMAGE_FIELD}" is empty', code="empty_image")
        return ImageAndRois(form.images[0], _rois_from_one_place(roi_texts, form.rois))
    if kind == _JSON:
        parsed = _parse_json(await _read_body(request, min(max_body_bytes, MAX_JSON_BYTES), _JSON_TOO_LARGE), max_rois)
        return ImageAndRois(parsed.image, _rois_from_one_place(roi_texts, parsed.rois))
    if kind is None or kind == _ANY_BYTES or kind.startswith("image/"):
        body = await _read_body(request, max_body_bytes)
        return ImageAndRois(body, parse_rois(roi_texts))
    raise UnsupportedTypeError(f"bodies of type {kind!r} are not read; {_ALLOWED}", code="unsupported_media_type")


async def read_images(request: Request, *, max_body_bytes: int, max_images: int) -> list[bytes]:
    """Read the images of a batch: the fields named `image` of a multipart body, in order.

    Raises:
        InvalidInputError, UnsupportedTypeError, TooLargeError, ClientDisconnect: see `read_image`.
    """
    kind = _content_type(request)
    if kind != _MULTIPART:
        raise UnsupportedTypeError(
            f"a batch is {_MULTIPART} with several fields {IMAGE_FIELD!r}, got {kind or 'no content type'}",
            code="unsupported_media_type",
        )
    form = await _read_multipart(request, max_body_bytes, max_images=max_images, max_rois=None)
    return form.images


def parse_rois(texts: Iterable[str]) -> tuple[Box, ...]:
    """Boxes from texts "x,y,width,height". Whether they lie inside the image is checked by the predictor.

    Raises:
        InvalidInputError: naming each text that is not four numbers.
    """
    boxes, wrong = [], []
    for index, text in enumerate(texts):
        try:
            x, y, width, height = (float(part) for part in text.split(","))
        except ValueError:
            shown = text if len(text) <= 64 else text[:61] + "..."
            wrong.append(FieldError(f"roi[{index}]", f"must be four numbers x,y,width,height in pixels, got {shown!r}"))
        else:
            boxes.append(Box(x, y, width, height))
    if wrong:
        raise InvalidInputError(f"{wrong[0].field}: {wrong[0].message}", code="invalid_roi", errors=wrong)
    return tuple(boxes)


def parse_timeout(text: str | None, *, default_s: float, max_s: float) -> float:
    """Seconds until the answer is of no use, from X-Request-Timeout-Ms. What is above the maximum becomes the maximum.

    Raises:
        InvalidInputError: if it is not a positive whole number.
    """
    if text is None:
        return default_s
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal() and int(digits[:18]) > 0):
        raise InvalidInputError(
            "X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1",
            code="invalid_timeout",
            errors=[FieldError("X-Request-Timeout-Ms", "must be a whole number of milliseconds, at least 1")],
        )
    return min(int(digits[:18]) / 1000, max_s)


def _content_type(request: Request) -> str | None:
    value = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return value or None


def _rois_from_one_place(in_query: Sequence[str], in_body: tuple[Box, ...]) -> tuple[Box, ...]:
    if in_query and in_body:
        raise InvalidInputError("give rois in the query or in the body, not in both", code="invalid_roi")
    return in_body or parse_rois(in_query)


# Reading, within bounds


async def _bounded(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes in. TooLargeError as soon as it is known to be longer than allowed."""
    _check_announced_length(request, max_bytes)
    received, more = 0, True
    while more:
        chunk, more = await _next_chunk(request)
        received += len(chunk)
        if received > max_bytes:
            raise _too_long(max_bytes)
        if chunk:
            yield chunk


async def _read_body(request: Request, max_bytes: int, advice: str = "") -> bytes:
    """The whole body, at least one byte. TooLargeError, with the advice, if it is longer than allowed."""
    _check_announced_length(request, max_bytes, advice)
    body, more = await _next_chunk(request)
    if more:  # else it is all there, as of most pictures, and need not be copied
        buffer = io.BytesIO()  # grows in place: chunks and what they are joined to would be twice the memory
        buffer.write(body)
        while more and buffer.tell() <= max_bytes:
            chunk, more = await _next_chunk(request)
            buffer.write(chunk)
        body = buffer.getvalue()
    if len(body) > max_bytes:
        raise _too_long(max_bytes, advice)
    if not body:
        raise InvalidInputError(f"the body is empty; {_ALLOWED}", code="empty_body")
    return body


def _check_announced_length(request: Request, max_bytes: int, advice: str = "") -> None:
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdecimal() and int(announced[:18]) > max_bytes:
        raise _too_long(max_bytes, advice)


async def _next_chunk(request: Request) -> tuple[bytes, bool]:
    """The next piece of the body, and whether there are more. Raises ClientDisconnect."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


def _too_long(max_bytes: int, advice: str = "") -> TooLargeError:
    return TooLargeError(
        f"the body is longer than {max_bytes} bytes, the most that is read{advice}", code="body_too_large"
    )


# JSON


def _parse_json(body: bytes, max_rois: int) -> ImageAndRois:
    body = body.removeprefix(codecs.BOM_UTF8)
    # Each value costs far more than its bytes, so those of a long body are counted before any is made.
    items = body.count(b"{") + body.count(b"[") + body.count(b",")
    most = _JSON_ITEMS + _JSON_ITEMS_OF_A_ROI * max_rois
    if len(body) > _SHORT_JSON_BYTES and items > most:
        raise TooLargeError(
            f"the JSON has {items} values, and at most {most} are read beside the image", code="json_too_complex"
        )
    try:
        request = HandPoseRequest.model_validate_json(body)
    except ValidationError as error:
        raise _wrong_json(error) from error
    rois = tuple(Box(roi.x, roi.y, roi.width, roi.height) for roi in request.rois)
    return ImageAndRois(_from_base64(request.image), rois)


def _wrong_json(error: ValidationError) -> InvalidInputError:
    details = error.errors(include_url=False, include_input=False, include_context=False)
    first = details[0]
    if first["type"] == "json_invalid":
        return InvalidInputError(
            f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    if first["type"] == "missing" and first["loc"] == (IMAGE_FIELD,):
        return InvalidInputError(f'the JSON has no "{IMAGE_FIELD}"; {_ALLOWED}', code="missing_image")
    fields = [FieldError(_path(each["loc"]), each["msg"]) for each in details[:16]]
    return InvalidInputError(f"{fields[0].field}: {fields[0].message}", code="invalid_field", errors=fields)


def _path(location: Sequence[int | str]) -> str:
    """("rois", 0, "x") as "rois[0].x"."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text[:128] or "body"


def _from_base64(text: str) -> bytes:
    if text[:5].lower() == "data:":
        prefix = _DATA_URI.match(text)
        if prefix is None:
            raise _wrong_base64("a data URI must be in base64: data:image/jpeg;base64,...")
        text = text[prefix.end() :]
    elif _LINK.match(text[:64]):
        message = "must be the image file itself in base64; the service fetches nothing from elsewhere"
        raise InvalidInputError(
            f"{IMAGE_FIELD}: {message}", code="link_not_fetched", errors=[FieldError(IMAGE_FIELD, message)]
        )
    try:
        # RFC 4648 has two alphabets, which differ in two characters.
        data = base64.b64decode("".join(text.split()).translate(_URL_SAFE_TO_STANDARD), validate=True)
    except ValueError as error:
        raise _wrong_base64("must be the image file in base64, or a data URI in base64") from error
    if not data:
        raise InvalidInputError(f'"{IMAGE_FIELD}" is empty; {_ALLOWED}', code="empty_image")
    return data


def _wrong_base64(message: str) -> InvalidInputError:
    return InvalidInputError(
        f"{IMAGE_FIELD}: {message}", code="invalid_base64", errors=[FieldError(IMAGE_FIELD, message)]
    )


# Multipart


@dataclass(frozen=True, slots=True)
class _Form:
    images: list[bytes]
    rois: tuple[Box, ...]


class _BoundedMultiPartParser(MultiPartParser):
    """Keeps parts in memory, which the bound on the body bounds, and says in our words when there are too many."""

    spool_max_size = 1 << 40

    def __init__(self, request: Request, stream: AsyncGenerator[bytes, None], max_images: int, max_texts: int) -> None:
        super().__init__(
            request.headers,
            stream,
            max_files=max_images + 1,
            max_fields=max_texts,
            max_part_size=_MAX_TEXT_FIELD_BYTES,
        )
        self._max_images = max_images

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if self._current_files > self._max_images:
            raise TooLargeError(
                f"the request has more than {self._max_images} image(s), the most that are read"
                + ("; for several use /v1/hand-pose:batch" if self._max_images == 1 else ""),
                code="too_many_images",
            )

    def close(self) -> None:
        """Let go of the parts, whatever became of them."""
        for file in self._files_to_close_on_error:
            file.close()


def _boundary_of(request: Request) -> bytes:
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"")
    return b"--" + boundary


async def _with_few_boundaries(
    chunks: AsyncGenerator[bytes, None], boundary: bytes, most: int
) -> AsyncGenerator[bytes, None]:
    """The same chunks. What looks like a boundary costs the parser far more than other bytes: it is counted first."""
    found = 0
    async for chunk in chunks:
        found += chunk.count(boundary)
        if found > most:
            raise TooLargeError(f"the multipart body has more than {most} parts", code="too_many_parts")
        yield chunk


async def _read_multipart(request: Request, max_bytes: int, *, max_images: int, max_rois: int | None) -> _Form:
    """The form's images and rois; `max_rois` is None where it may have no rois at all."""
    # Other parsers than this one fail in other ways on a missing boundary, so it is looked for first.
    if "boundary=" not in request.headers.get("content-type", "").lower():
        raise InvalidInputError("the Content-Type of a multipart body must name its boundary", code="invalid_multipart")
    # A few texts more than are allowed: what is wrong with them is better said below.
    texts = (max_rois or 0) + 8
    chunks = _with_few_boundaries(_bounded(request, max_bytes), _boundary_of(request), max_images + texts + 8)
    parser = _BoundedMultiPartParser(request, chunks, max_images, texts)
    try:
        return await _form_of(await parser.parse(), {IMAGE_FIELD} if max_rois is None else {IMAGE_FIELD, ROI_FIELD})
    except MultiPartException as error:
        raise InvalidInputError(
            f"the multipart body cannot be read: {error.message}", code="invalid_multipart"
        ) from error
    except (KeyError, UnicodeError, LookupError) as error:
        raise InvalidInputError("the multipart body cannot be read", code="invalid_multipart") from error
    finally:
        parser.close()


async def _form_of(form: FormData, allowed: set[str]) -> _Form:
    images, roi_texts = [], []
    for name, value in form.multi_items():
        if name not in allowed:
            raise InvalidInputError(
                f"there is a field {name[:64]!r}; what is read is {' and '.join(sorted(allowed))}",
                code="unexpected_field",
            )
        if name == IMAGE_FIELD and isinstance(value, UploadFile):
            images.append(await value.read())
            await value.close()  # what it held is held by the bytes now
        elif name == ROI_FIELD and isinstance(value, str):
            roi_texts.append(value)
        elif name == IMAGE_FIELD:
            raise InvalidInputError(
                f'the field "{IMAGE_FIELD}" must be a file with a file name: curl -F "{IMAGE_FIELD}=@hand.jpg"',
                code="missing_image",
            )
        else:
            raise InvalidInputError(f'the field "{ROI_FIELD}" must be a text x,y,width,height', code="invalid_roi")
    if not images:
        raise InvalidInputError(f'the form has no field "{IMAGE_FIELD}"; {_ALLOWED}', code="missing_image")
    return _Form(images, parse_rois(roi_texts))
