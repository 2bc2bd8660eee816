"""The API's description is valid, complete, and agrees with what the service answers."""

import base64
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from tests.service.rest.conftest import Gateway
from tests.support.images import image_bytes

Document = dict[str, Any]
HAND_POSE = "/v1/hand-pose"


@pytest.fixture
async def document(gateway: Gateway) -> Document:
    answer = await gateway.client.get("/openapi.json")
    description: Document = answer.json()
    return description


def test_document_is_valid(document: Document) -> None:
    validate(document)


def test_document_describes_every_call(document: Document) -> None:
    calls = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert calls >= {
        ("post", HAND_POSE),
        ("post", f"{HAND_POSE}:batch"),
        ("get", "/v1/models"),
        ("get", "/v1/skeleton"),
        ("get", "/livez"),
        ("get", "/readyz"),
        ("get", "/metrics"),
    }


def test_document_describes_all_kinds_of_body(document: Document) -> None:
    content = document["paths"][HAND_POSE]["post"]["requestBody"]["content"]
    assert content.keys() >= {"image/jpeg", "image/png", "image/*", "multipart/form-data", "application/json"}


def test_document_describes_all_answers(document: Document) -> None:
    responses = document["paths"][HAND_POSE]["post"]["responses"]
    assert set(responses) == {
        *("200", "400", "401", "404", "406", "408", "413", "415", "422", "429", "500", "503", "504"),
    }
    assert set(responses["200"]["content"]) == {"application/json", "image/png", "image/jpeg"}
    assert set(responses["200"]["headers"]) == {"X-Request-Id", "X-Model-Variant"}
    for status, response in responses.items():
        if status != "200":
            assert list(response["content"]) == ["application/problem+json"]
        if status in ("429", "503"):
            assert "Retry-After" in response["headers"]


def test_document_describes_all_parameters(document: Document) -> None:
    parameters = {each["name"]: each["in"] for each in document["paths"][HAND_POSE]["post"]["parameters"]}
    assert parameters == {
        "roi": "query",
        **dict.fromkeys(("max_hands", "min_score", "whole"), "query"),
        "X-Model-Variant": "header",
        "X-Client-Id": "header",
        "X-Request-Timeout-Ms": "header",
        "X-Request-Id": "header",
        "traceparent": "header",
    }


def test_every_field_of_the_answer_is_explained(document: Document) -> None:
    for name in ("Keypoint", "Box", "Problem"):
        for field, schema in document["components"]["schemas"][name]["properties"].items():
            assert schema.get("description"), f"{name}.{field}"


@pytest.mark.parametrize("call", ["ok", "problem", "batch", "models", "skeleton", "ready"])
async def test_answers_fit_their_schemas(gateway: Gateway, document: Document, call: str) -> None:
    image = image_bytes()
    client = gateway.client
    answer, path, method = {
        "ok": (await client.post(HAND_POSE, content=image), HAND_POSE, "post"),
        "problem": (await client.post(HAND_POSE, params={"roi": "1"}, content=image), HAND_POSE, "post"),
        "batch": (
            await client.post(f"{HAND_POSE}:batch", files=[("image", ("a", image)), ("image", ("b", b"no"))]),
            f"{HAND_POSE}:batch",
            "post",
        ),
        "models": (await client.get("/v1/models"), "/v1/models", "get"),
        "skeleton": (await client.get("/v1/skeleton"), "/v1/skeleton", "get"),
        "ready": (await client.get("/readyz"), "/readyz", "get"),
    }[call]
    response = document["paths"][path][method]["responses"][str(answer.status_code)]
    content_type = answer.headers["Content-Type"].partition(";")[0]
    check(answer.json(), response["content"][content_type]["schema"], document)


async def test_body_the_document_describes_is_understood(gateway: Gateway, document: Document) -> None:
    body = {"image": base64.b64encode(image_bytes()).decode(), "rois": [{"x": 0, "y": 0, "width": 10, "height": 10}]}
    content = document["paths"][HAND_POSE]["post"]["requestBody"]["content"]
    check(body, content["application/json"]["schema"], document)
    assert (await gateway.client.post(HAND_POSE, json=body)).status_code == 200


def check(value: Any, schema: Document, document: Document) -> None:
    """Raise unless the value fits the schema, whose references point into the document."""
    OAS31Validator({**schema, "components": document["components"]}).validate(value)


async def test_calls_that_may_need_a_key_say_so_and_health_does_not(gateway: Gateway) -> None:
    document = (await gateway.client.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    with_key = {
        path
        for path, operations in document["paths"].items()
        for operation in operations.values()
        if {"key": []} in operation.get("security", []) and {"401", "429"} <= operation["responses"].keys()
    }
    assert with_key == set(document["paths"]) - {"/livez", "/readyz"}
