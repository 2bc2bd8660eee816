"""From an HTTP request to an image, regions and a deadline; every way to get it wrong has a code of its own.

Bodies are bounded while they are read. Nothing is decoded here but JSON, base64 and multipart; what the image is, is
found out by the predictor.
"""

import base64
import codecs
import io
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fastapi import Request
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from service.inference.errors import FieldError, InvalidInputError, TooLargeError, UnsupportedTypeError
from service.inference.estimates import DEFAULT_MAX_HANDS, DEFAULT_MIN_SCORE
from service.pose.geometry import Box
from service.rest.problems import invalid_fields
from service.rest.schemas import HandPoseRequest
from service.rest.uploads import announced_length

MAX_JSON_BYTES: Final = 2 * 1024 * 1024
"""JSON is parsed whole, with the image in it as text; larger images are sent raw or as a form."""

IMAGE_FIELD: Final = "image"
ROI_FIELD: Final = "roi"

SEARCH_NAMES: Final = ("whole", "max_hands", "min_score")
"""Options of how hands are looked for, in the query, in forms and in JSON."""

ROI_NAMES: Final = (ROI_FIELD, "rois")
"""In the query and in forms a box each, repeatable; in JSON a list. Either spelling is read."""

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
class HandOptions:
    """Where the hands of an image are, or how to look for them; as in `EstimateRequest`.

    Attributes:
        given: the names that the request gave, without values it left to their defaults.
    """

    rois: tuple[Box, ...] = ()
    whole: bool = False
    max_hands: int = DEFAULT_MAX_HANDS
    min_score: float = DEFAULT_MIN_SCORE
    given: frozenset[str] = frozenset()

    def for_image(self, image: bytes) -> dict[str, Any]:
        """The same, and the image, as `EstimateRequest` takes them."""
        return {
            "image": image,
            "rois": self.rois,
            "whole": self.whole,
            "max_hands": self.max_hands,
            "min_score": self.min_score,
        }


async def read_image(request: Request, *, max_body_bytes: int, max_rois: int) -> tuple[bytes, HandOptions]:
    """Read the one image of a request, whichever of the three kinds its body is; and where its hands are.

    Args:
        request: its body has not been read.
        max_body_bytes: longest body.
        max_rois: boxes in the body; their number is bounded while it is read.

    Raises:
        InvalidInputError, UnsupportedTypeError, TooLargeError: with a code that says which mistake it was.
        ClientDisconnect: the sender went away.
    """
    in_query = parse_options(request.query_params.multi_items(), "query", (*ROI_NAMES, *SEARCH_NAMES))
    kind = _content_type(request)
    in_body = HandOptions()
    if kind == _MULTIPART:
        (image,), in_body = await _read_multipart(request, max_body_bytes, max_images=1, max_rois=max_rois)
        if not image:
            raise InvalidInputError(f'the file in the field "{IMAGE_FIELD}" is empty', code="empty_image")
    elif kind == _JSON:
        body = await _read_body(request, min(max_body_bytes, MAX_JSON_BYTES), _JSON_TOO_LARGE)
        image, in_body = _parse_json(body, max_rois)
    elif kind is None or kind == _ANY_BYTES or kind.startswith("image/"):
        image = await _read_body(request, max_body_bytes)
    else:
        raise UnsupportedTypeError(f"bodies of type {kind!r} are not read; {_ALLOWED}", code="unsupported_media_type")
    return image, _joined(in_query, in_body)


async def read_images(request: Request, *, max_body_bytes: int, max_images: int) -> tuple[list[bytes], HandOptions]:
    """Read the images of a batch, the fields named `image` of a multipart body, in order; and how to look at them all.

    Raises:
        InvalidInputError, UnsupportedTypeError, TooLargeError, ClientDisconnect: see `read_image`.
    """
    in_query = parse_options(request.query_params.multi_items(), "query", SEARCH_NAMES)
    kind = _content_type(request)
    if kind != _MULTIPART:
        raise UnsupportedTypeError(
            f"a batch is {_MULTIPART} with several fields {IMAGE_FIELD!r}, got {kind or 'no content type'}",
            code="unsupported_media_type",
        )
    images, in_body = await _read_multipart(request, max_body_bytes, max_images=max_images, max_rois=None)
    return images, _joined(in_query, in_body)


def parse_options(items: Iterable[tuple[str, str]], where: str, allowed: Sequence[str]) -> HandOptions:
    """Options from texts. Whether they are in range is checked by the predictor.

    Args:
        items: names and values.
        where: what they are part of, for messages: "query" or "form".
        allowed: the names that may be given.

    Raises:
        InvalidInputError: naming what is not known, given twice, or not of its kind.
    """
    rois: list[str] = []
    texts: dict[str, str] = {}
    for name, text in items:
        if name not in allowed:
            names = ", ".join(each for each in allowed if each != ROI_NAMES[1])
            message = f"the {where} has {name[:64]!r}; what is read there is {names}"
            code = "unexpected_field" if where == "form" else "unknown_option"
            raise InvalidInputError(message, code=code, errors=[FieldError(name[:64], "is not known")])
        if name in ROI_NAMES:
            rois.append(text)
        elif name in texts:
            raise invalid_fields("invalid_option", FieldError(name, "is given more than once"))
        else:
            texts[name] = text
    values = {name: _OPTION_KINDS[name](name, text) for name, text in texts.items()}
    given = frozenset((*texts, *ROI_NAMES[:1])) if rois else frozenset(texts)
    return HandOptions(rois=parse_rois(rois), given=given, **values)


def _joined(one: HandOptions, other: HandOptions) -> HandOptions:
    """The options of both, none of which may be given in both."""
    if twice := sorted(one.given & other.given):
        code = "invalid_roi" if twice == [ROI_FIELD] else "invalid_option"
        raise InvalidInputError(f"give {twice[0]} in the query or in the body, not in both", code=code)
    values = {("rois" if name == ROI_FIELD else name) for name in other.given}
    return replace(one, given=one.given | other.given, **{name: getattr(other, name) for name in values})


def _flag(name: str, text: str) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower())
    if known is None:
        raise invalid_fields("invalid_option", FieldError(name, f"must be true or false, got {text[:64]!r}"))
    return known


def _whole_number(name: str, text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 9):
        raise invalid_fields("invalid_option", FieldError(name, f"must be a whole number, got {text[:64]!r}"))
    return int(digits)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise invalid_fields("invalid_option", FieldError(name, f"must be a number, got {text[:64]!r}")) from None


_OPTION_KINDS: Final[dict[str, Callable[[str, str], Any]]] = {
    "whole": _flag,
    "max_hands": _whole_number,
    "min_score": _number,
}


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
        raise invalid_fields("invalid_roi", *wrong)
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
        wrong = FieldError("X-Request-Timeout-Ms", "must be a whole number of milliseconds, at least 1")
        raise InvalidInputError(f"{wrong.field} {wrong.message}", code="invalid_timeout", errors=[wrong])
    return min(int(digits[:18]) / 1000, max_s)


def _content_type(request: Request) -> str | None:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() or None


# Reading, within bounds


async def _chunks(request: Request, max_bytes: int, advice: str = "") -> AsyncGenerator[bytes, None]:
    """The body as it comes in. TooLargeError, with the advice, as soon as it is known to be longer than allowed."""
    too_long = TooLargeError(
        f"the body is longer than {max_bytes} bytes, the most that is read{advice}", code="body_too_large"
    )
    if announced_length(request.headers) > max_bytes:
        raise too_long
    received, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        received += len(chunk)
        if received > max_bytes:
            raise too_long
        yield chunk


async def _read_body(request: Request, max_bytes: int, advice: str = "") -> bytes:
    """The whole body, at least one byte."""
    buffer = io.BytesIO()  # grows in place: chunks and what they are joined to would be twice the memory
    async for chunk in _chunks(request, max_bytes, advice):
        buffer.write(chunk)
    if not buffer.tell():
        raise InvalidInputError(f"the body is empty; {_ALLOWED}", code="empty_body")
    return buffer.getvalue()


# JSON


def _parse_json(body: bytes, max_rois: int) -> tuple[bytes, HandOptions]:
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
    given = frozenset(ROI_FIELD if name in ROI_NAMES else name for name in request.model_fields_set - {IMAGE_FIELD})
    options = HandOptions(
        rois=tuple(each.in_image() for each in request.rois),
        whole=request.whole,
        max_hands=request.max_hands,
        min_score=request.min_score,
        given=given,
    )
    return _from_base64(request.image), options


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
    return invalid_fields("invalid_field", *fields)


def _path(location: Sequence[int | str]) -> str:
    """("rois", 0, "x") as "rois[0].x"."""
    parts = (f"[{each}]" if isinstance(each, int) else f".{each}" for each in location)
    return "".join(parts).removeprefix(".")[:128] or "body"


def _from_base64(text: str) -> bytes:
    code = "invalid_base64"
    if text[:5].lower() == "data:":
        prefix = _DATA_URI.match(text)
        if prefix is None:
            message = "a data URI must be in base64: data:image/jpeg;base64,..."
            raise invalid_fields(code, FieldError(IMAGE_FIELD, message))
        text = text[prefix.end() :]
    elif _LINK.match(text[:64]):
        message = "must be the image file itself in base64; the service fetches nothing from elsewhere"
        raise invalid_fields("link_not_fetched", FieldError(IMAGE_FIELD, message))
    try:
        # RFC 4648 has two alphabets, which differ in two characters.
        data = base64.b64decode("".join(text.split()).translate(_URL_SAFE_TO_STANDARD), validate=True)
    except ValueError as error:
        message = "must be the image file in base64, or a data URI in base64"
        raise invalid_fields(code, FieldError(IMAGE_FIELD, message)) from error
    if not data:
        raise InvalidInputError(f'"{IMAGE_FIELD}" is empty; {_ALLOWED}', code="empty_image")
    return data


# Multipart


async def _read_multipart(
    request: Request, max_bytes: int, *, max_images: int, max_rois: int | None
) -> tuple[list[bytes], HandOptions]:
    """The form's images and options; `max_rois` is None where it may have no rois at all."""
    # Other parsers than this one fail in other ways on a missing boundary, so it is looked for first.
    content_type = request.headers["content-type"]
    if "boundary=" not in content_type.lower():
        raise InvalidInputError("the Content-Type of a multipart body must name its boundary", code="invalid_multipart")
    # A few texts more than are allowed: what is wrong with them is better said below.
    texts = (max_rois or 0) + 8
    boundary = b"--" + parse_options_header(content_type)[1].get(b"boundary", b"")
    most = max_images + texts + 8

    async def chunks() -> AsyncGenerator[bytes, None]:
        # What looks like a boundary costs the parser far more than other bytes: it is counted first.
        found = 0
        async for chunk in _chunks(request, max_bytes):
            found += chunk.count(boundary)
            if found > most:
                raise TooLargeError(f"the multipart body has more than {most} parts", code="too_many_parts")
            yield chunk

    parser = MultiPartParser(
        request.headers, chunks(), max_files=max_images, max_fields=texts, max_part_size=_MAX_TEXT_FIELD_BYTES
    )
    parser.spool_max_size = 1 << 40  # parts stay in memory, which the bound on the body bounds
    try:
        return await _images_and_options(await parser.parse(), takes_rois=max_rois is not None)
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            advice = "; for several use /v1/hand-pose:batch" if max_images == 1 else ""
            raise TooLargeError(
                f"the request has more than {max_images} image(s), the most that are read{advice}",
                code="too_many_images",
            ) from error
        detail = f"the multipart body cannot be read: {error.message}"
        raise InvalidInputError(detail, code="invalid_multipart") from error
    except (KeyError, UnicodeError, LookupError) as error:
        raise InvalidInputError("the multipart body cannot be read", code="invalid_multipart") from error
    finally:
        for file in parser._files_to_close_on_error:
            file.close()


async def _images_and_options(form: FormData, *, takes_rois: bool) -> tuple[list[bytes], HandOptions]:
    images: list[bytes] = []
    texts: list[tuple[str, str]] = []
    for name, value in form.multi_items():
        if name == IMAGE_FIELD:
            if not isinstance(value, UploadFile):
                raise InvalidInputError(
                    f'the field "{IMAGE_FIELD}" must be a file with a file name: curl -F "{IMAGE_FIELD}=@hand.jpg"',
                    code="missing_image",
                )
            images.append(await value.read())
            await value.close()  # what it held is held by the bytes now
        elif isinstance(value, str):
            texts.append((name, value))
        else:
            code = "invalid_roi" if name in ROI_NAMES else "unexpected_field"
            raise InvalidInputError(f"the field {name[:64]!r} is a file; only {IMAGE_FIELD} may be one", code=code)
    options = parse_options(texts, "form", (*ROI_NAMES, *SEARCH_NAMES) if takes_rois else SEARCH_NAMES)
    if not images:
        raise InvalidInputError(f'the form has no field "{IMAGE_FIELD}"; {_ALLOWED}', code="missing_image")
    return images, options
