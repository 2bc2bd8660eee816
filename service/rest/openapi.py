"""What the OpenAPI document says beyond the schemas: bodies, headers, and the problems each call may answer with.

Bodies and parameters are read by hand (`service.rest.parsing`): each mistake gets its own code, and it costs less than
FastAPI's way, which it takes on every request. So FastAPI cannot know them, and they are described here. Nothing here
changes what a call does.
"""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.answers import PROBLEM_TYPES
from service.inference.errors import ErrorKind
from service.pose.images import FORMATS
from service.rest.access import OPEN_PATHS
from service.rest.problems import MEDIA_TYPE
from service.rest.schemas import FieldProblem, HandPoseRequest, Problem, RequestedBox

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
_BINARY: Final = {"type": "string", "contentMediaType": "application/octet-stream"}
_IMAGE_TYPES: Final = (
    *("image/jpeg", "image/png", "image/webp", "image/avif", "image/heic"),
    *("image/*", "application/octet-stream"),
)


def _header(description: str, schema: Mapping[str, Any], *, always: bool = True) -> Document:
    return {"description": description, "required": always, "schema": dict(schema)}


_ID_HEADER: Final = {"X-Request-Id": _header("names this request in the service's log", {"type": "string"})}
_SERVED_BY: Final = {
    "X-Model-Variant": _header(
        "what served, with its version; sent with a request, it asks for exactly that",
        {"type": "string", "examples": ["lightweight@1"]},
    )
}
_RETRY_AFTER: Final = {"Retry-After": _header("seconds until the same request may succeed", {"type": "integer"})}


def _parameter(name: str, place: str, description: str, schema: Mapping[str, Any], **examples: Any) -> Document:
    return {
        "name": name,
        "in": place,
        "required": False,
        "description": description,
        "schema": dict(schema),
        "examples": {title.replace("_", " "): {"value": each} for title, each in examples.items()},
    }


_PARAMETERS: Final = [
    _parameter(
        "X-Model-Variant",
        "header",
        "standard or lightweight, optionally with @version or @label; without it the service chooses",
        {"type": "string"},
        variant="standard",
        version="lightweight@1",
        label="standard@stable",
    ),
    _parameter(
        "X-Client-Id",
        "header",
        "printable characters; keeps one client on one side of a split between models",
        {"type": "string", "maxLength": 128},
        a_device="kiosk-7",
    ),
    _parameter(
        "X-Request-Timeout-Ms",
        "header",
        "milliseconds after which the answer is of no use; the service's maximum caps it",
        {"type": "integer", "minimum": 1},
        two_seconds=2000,
    ),
    _parameter(
        "X-Request-Id",
        "header",
        "A-Z a-z 0-9 . _ ~ : / + = @ -; returned and logged; made up where it is absent",
        {"type": "string", "maxLength": 128},
        a_number="order-1234",
    ),
    _parameter(
        "traceparent",
        "header",
        "W3C trace context, logged and passed on",
        {"type": "string"},
        from_the_standard="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
]
_ROI_PARAMETER: Final = _parameter(
    "roi",
    "query",
    "a box around one hand, x,y,width,height in pixels of the upright image; repeat it for several hands. Without it, "
    "the whole image shows one hand.",
    {"type": "array", "items": {"type": "string"}},
    one_hand=["120,80,300,300"],
    two_hands=["0,0,200,200", "220,10,180,190"],
)


def _problems(*kinds: ErrorKind) -> dict[int | str, Document]:
    """Responses for kinds of failure, all as problem+json."""
    responses: dict[int | str, Document] = {}
    for kind in kinds:
        problem = PROBLEM_TYPES[kind]
        waits = kind in (ErrorKind.OVERLOADED, ErrorKind.UNAVAILABLE)
        responses[problem.status] = {
            "description": problem.title,
            "headers": {**_ID_HEADER, **(_RETRY_AFTER if waits else {})},
            "content": {MEDIA_TYPE: {"schema": {"$ref": _SCHEMA_REF.format(model="Problem")}}},
        }
    return responses


_NOT_ACCEPTABLE: Final[dict[int | str, Document]] = {
    406: {
        "description": "The Accept header wants none of the types that are answered",
        "headers": _ID_HEADER,
        "content": {MEDIA_TYPE: {"schema": {"$ref": _SCHEMA_REF.format(model="Problem")}}},
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
            "description": "One hand for each roi, in their order; without rois, one in the whole image",
            "headers": {**_ID_HEADER, **_SERVED_BY},
            "content": {"image/png": {"schema": _BINARY}, "image/jpeg": {"schema": _BINARY}},
        },
        **_problems(*_READING, *_ANSWERING),
        **_NOT_ACCEPTABLE,
    },
    "openapi_extra": {
        "parameters": [_ROI_PARAMETER, *_PARAMETERS],
        "requestBody": {
            "required": True,
            "content": {
                **{each: {"schema": _BINARY} for each in _IMAGE_TYPES},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "additionalProperties": False,
                        "properties": {
                            "image": {**_BINARY, "description": "the image file"},
                            "roi": {"type": "array", "items": {"type": "string"}, "description": "as in the query"},
                        },
                    },
                    "encoding": {"image": {"contentType": "application/octet-stream, image/*"}},
                },
                "application/json": {"schema": {"$ref": _SCHEMA_REF.format(model="HandPoseRequest")}},
            },
        },
    },
}

HAND_POSE_BATCH: Final[Document] = {
    "summary": "Find the hands of several images",
    "description": "Each image gets a result or a problem of its own. Batches wait behind single images.",
    "responses": {
        200: {"description": "One entry for each image, in order", "headers": _ID_HEADER},
        **_problems(*_READING, ErrorKind.INTERNAL),
    },
    "openapi_extra": {
        "parameters": _PARAMETERS,
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "additionalProperties": False,
                        "properties": {
                            "image": {
                                "type": "array",
                                "minItems": 1,
                                "items": _BINARY,
                                "description": "the image files, one field each",
                            }
                        },
                    },
                    "encoding": {"image": {"contentType": "application/octet-stream, image/*"}},
                },
            },
        },
    },
}

MODELS: Final[Document] = {
    "summary": "The models that can be asked",
    "responses": {200: {"description": "Every version of every model, with what was measured", "headers": _ID_HEADER}},
}
SKELETON: Final[Document] = {
    "summary": "The 21 keypoints, their order, and the edges between them",
    "responses": {200: {"description": "The same for every model", "headers": _ID_HEADER}},
}
LIVE: Final[Document] = {
    "summary": "Does the process answer?",
    "responses": {200: {"description": "It does", "headers": _ID_HEADER}},
}
READY: Final[Document] = {
    "summary": "Does every model answer?",
    "responses": {
        200: {"description": "Send requests", "headers": _ID_HEADER},
        **_problems(ErrorKind.UNAVAILABLE),
    },
}
METRICS: Final[Document] = {
    "summary": "What was measured, for Prometheus",
    "responses": {
        200: {
            "description": "Prometheus's text format; OpenMetrics, with exemplars, where Accept takes it",
            "headers": _ID_HEADER,
            "content": {
                "text/plain": {"schema": {"type": "string"}},
                "application/openmetrics-text": {"schema": {"type": "string"}},
            },
        }
    },
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
    _describe_keys(document)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (Problem, FieldProblem, HandPoseRequest, RequestedBox):
        schema = model.model_json_schema(ref_template=_SCHEMA_REF)
        schema.pop("$defs", None)
        schemas[model.__name__] = schema
    return document


def _describe_keys(document: Document) -> None:
    """Which calls need a key, where the service asks for keys; and what they answer without one."""
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
