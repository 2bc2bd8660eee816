"""What the OpenAPI document says beyond the schemas: bodies, headers, and the problems each call may answer with.

Bodies and parameters are read by hand (`service.rest.parsing`): each mistake gets its own code, and it costs less than
FastAPI's way, which it takes on every request. So FastAPI cannot know them, and they are described here. Nothing here
changes what a call does.
"""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.answers import PROBLEM_TYPES
from service.inference.errors import ErrorKind
from service.inference.estimates import DEFAULT_MAX_HANDS, DEFAULT_MIN_SCORE, MOST_HANDS
from service.pose.images import FORMATS
from service.rest.access import OPEN_PATHS
from service.rest.problems import MEDIA_TYPE
from service.rest.schemas import HandPoseRequest, Problem

Document = dict[str, Any]

API_VERSION: Final = "1.0"
"""Version of the contract, not of the program: the paths say /v1."""

_DESCRIPTION: Final = f"""\
Send an image, get the 21 keypoints of each hand, with confidences.

Coordinates are pixels of the image as a person sees it (EXIF orientation applied): x to the right, y down, pixel i
covers [i, i + 1). Images are read from their content, whatever type they are declared as: {", ".join(FORMATS)}.
Every error is an RFC 9457 problem with a stable `code`.
"""

_SCHEMA_REF: Final = "#/components/schemas/{model}"
_TEXT: Final[Document] = {"type": "string"}
_TEXTS: Final[Document] = {"type": "array", "items": _TEXT}
_BINARY: Final = {"type": "string", "contentMediaType": "application/octet-stream"}
_IMAGE_TYPES: Final = (
    *("image/jpeg", "image/png", "image/webp", "image/avif", "image/heic"),
    *("image/*", "application/octet-stream"),
)


def _header(description: str, schema: Document) -> Document:
    return {"description": description, "required": True, "schema": schema}


_ID_HEADER: Final = {"X-Request-Id": _header("names this request in the service's log", _TEXT)}
_RETRY_AFTER: Final = {"Retry-After": _header("seconds until the same request may succeed", {"type": "integer"})}


def _parameter(name: str, description: str, schema: Document, *, place: str = "header", **examples: Any) -> Document:
    return {
        "name": name,
        "in": place,
        "required": False,
        "description": description,
        "schema": schema,
        "examples": {title.replace("_", " "): {"value": each} for title, each in examples.items()},
    }


_PARAMETERS: Final = [
    _parameter(
        "X-Model-Variant",
        "standard or lightweight, optionally with @version or @label; without it the service chooses",
        _TEXT,
        variant="standard",
        version="lightweight@1",
        label="standard@stable",
    ),
    _parameter(
        "X-Client-Id",
        "printable characters; keeps one client on one side of a split between models",
        {"type": "string", "maxLength": 128},
        a_device="kiosk-7",
    ),
    _parameter(
        "X-Request-Timeout-Ms",
        "milliseconds after which the answer is of no use; the service's maximum caps it",
        {"type": "integer", "minimum": 1},
        two_seconds=2000,
    ),
    _parameter(
        "X-Request-Id",
        "A-Z a-z 0-9 . _ ~ : / + = @ -; returned and logged; made up where it is absent",
        {"type": "string", "maxLength": 128},
        a_number="order-1234",
    ),
    _parameter(
        "traceparent",
        "W3C trace context, logged and passed on",
        _TEXT,
        from_the_standard="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
]
_ROI_PARAMETER: Final = _parameter(
    "roi",
    "a box around one hand, x,y,width,height in pixels of the upright image; repeat it for several hands. Without it, "
    "hands are looked for.",
    _TEXTS,
    place="query",
    one_hand=["120,80,300,300"],
    two_hands=["0,0,200,200", "220,10,180,190"],
)
_SEARCH_SCHEMAS: Final[dict[str, Document]] = {
    "max_hands": {
        "type": "integer",
        "minimum": 1,
        "maximum": MOST_HANDS,
        "default": DEFAULT_MAX_HANDS,
        "description": "how many hands to look for at the most",
    },
    "min_score": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": DEFAULT_MIN_SCORE,
        "description": "hands that are looked for and score less are left out",
    },
    "whole": {
        "type": "boolean",
        "default": False,
        "description": "the whole image is one hand, as in the paper's protocol; nothing is looked for",
    },
}
_SEARCH_PARAMETERS: Final = [
    _parameter("max_hands", "how many hands to look for at the most", _SEARCH_SCHEMAS["max_hands"], place="query"),
    _parameter("min_score", "leaves out hands that score less", _SEARCH_SCHEMAS["min_score"], place="query"),
    _parameter("whole", "the whole image is one hand", _SEARCH_SCHEMAS["whole"], place="query"),
]


def _problem(description: str, *, waits: bool = False) -> Document:
    return {
        "description": description,
        "headers": {**_ID_HEADER, **(_RETRY_AFTER if waits else {})},
        "content": {MEDIA_TYPE: {"schema": {"$ref": _SCHEMA_REF.format(model="Problem")}}},
    }


def _problems(*kinds: ErrorKind) -> dict[int | str, Document]:
    """Responses for kinds of failure, by status."""
    waiting = (ErrorKind.OVERLOADED, ErrorKind.UNAVAILABLE)
    return {PROBLEM_TYPES[each].status: _problem(PROBLEM_TYPES[each].title, waits=each in waiting) for each in kinds}


def _call(summary: str, answer: str, *problems: ErrorKind, **more: Any) -> Document:
    """The arguments of a route: what it does, what its 200 says, and how it may fail."""
    return {
        "summary": summary,
        "responses": {200: {"description": answer, "headers": _ID_HEADER}, **_problems(*problems)},
        **more,
    }


def _form(image: Document, **more: Document) -> Document:
    """The content of a body that is a form with images."""
    return {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "additionalProperties": False,
                "properties": {"image": image, **more},
            },
            "encoding": {"image": {"contentType": "application/octet-stream, image/*"}},
        }
    }


_READING: Final = (
    ErrorKind.INVALID_INPUT,
    ErrorKind.TOO_LARGE,
    ErrorKind.UNSUPPORTED_TYPE,
    ErrorKind.TOO_SLOW,
)
_ANSWERING: Final = (
    ErrorKind.UNDECODABLE_IMAGE,
    ErrorKind.UNKNOWN_MODEL,
    ErrorKind.OVERLOADED,
    ErrorKind.UNAVAILABLE,
    ErrorKind.DEADLINE_EXCEEDED,
    ErrorKind.INTERNAL,
)

HAND_POSE: Final[Document] = {
    "summary": "Find the keypoints of the hands in an image",
    "description": "The image is the body itself, a field of a form, or base64 in JSON. With `Accept: image/png` or "
    "`image/jpeg` the answer is the picture with the skeleton drawn on it.",
    "responses": {
        200: {
            "description": "The hands that were found, best first: none, one or several. With rois one for each",
            "headers": {
                **_ID_HEADER,
                "X-Model-Variant": _header(
                    "what served, with its version; sent with a request, it asks for exactly that",
                    {"type": "string", "examples": ["lightweight@1"]},
                ),
            },
            "content": {"image/png": {"schema": _BINARY}, "image/jpeg": {"schema": _BINARY}},
        },
        **_problems(*_READING, *_ANSWERING),
        406: _problem("The Accept header wants none of the types that are answered"),
    },
    "openapi_extra": {
        "parameters": [_ROI_PARAMETER, *_SEARCH_PARAMETERS, *_PARAMETERS],
        "requestBody": {
            "required": True,
            "content": {
                **{each: {"schema": _BINARY} for each in _IMAGE_TYPES},
                **_form(
                    {**_BINARY, "description": "the image file"},
                    roi={**_TEXTS, "description": "as in the query"},
                    **_SEARCH_SCHEMAS,
                ),
                "application/json": {"schema": {"$ref": _SCHEMA_REF.format(model="HandPoseRequest")}},
            },
        },
    },
}
HAND_POSE_BATCH: Final = _call(
    "Find the hands of several images",
    "One entry for each image, in order",
    *_READING,
    ErrorKind.INTERNAL,
    description="Each image gets a result or a problem of its own. Batches wait behind single images.",
    openapi_extra={
        "parameters": [*_SEARCH_PARAMETERS, *_PARAMETERS],
        "requestBody": {
            "required": True,
            "content": _form(
                {
                    "type": "array",
                    "minItems": 1,
                    "items": _BINARY,
                    "description": "the image files, one field each",
                },
                **_SEARCH_SCHEMAS,
            ),
        },
    },
)
MODELS: Final = _call("The models that can be asked", "Every version of every model, with what was measured")
SKELETON: Final = _call("The 21 keypoints, their order, and the edges between them", "The same for every model")
LIVE: Final = _call("Does the process answer?", "It does")
READY: Final = _call("Does every model answer?", "Send requests", ErrorKind.UNAVAILABLE)
METRICS: Final = _call(
    "What was measured, for Prometheus",
    "Prometheus's text format; OpenMetrics, with exemplars, where Accept takes it",
)
METRICS["responses"][200]["content"] = {
    each: {"schema": _TEXT} for each in ("text/plain", "application/openmetrics-text")
}


def describe(app: FastAPI) -> Document:
    """The OpenAPI document of the application."""
    document = get_openapi(
        title="Hand pose",
        version=API_VERSION,
        description=_DESCRIPTION,
        routes=app.routes,
        tags=[
            {"name": "hands", "description": "Find hands"},
            {"name": "about", "description": "What the answers mean"},
            {"name": "operation", "description": "For whoever runs the service"},
        ],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    # Which calls need a key, where the service asks for keys; and what they answer without one.
    document.setdefault("components", {})["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "an API key, where the service asks for one"}
    }
    refusals = {
        str(status): each for status, each in _problems(ErrorKind.UNAUTHENTICATED, ErrorKind.OVERLOADED).items()
    }
    for path, operations in document["paths"].items():
        if path in OPEN_PATHS:
            continue
        for operation in operations.values():
            operation["security"] = [{}, {"key": []}]
            operation["responses"] = {**refusals, **operation["responses"]}
    _, described = models_json_schema(
        [(Problem, "validation"), (HandPoseRequest, "validation")], ref_template=_SCHEMA_REF
    )
    document["components"].setdefault("schemas", {}).update(described["$defs"])
    return document
