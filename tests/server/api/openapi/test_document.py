"""The description of the API: bounds of the model, errors, keys, and nothing left unsaid."""

import json
import re

import jsonschema
import pytest
from fastapi import FastAPI

from server.api.access.scopes import Scope
from server.api.openapi.document import describe
from server.api.openapi.limits import Limit, ModelLimits, limited_by, state_limits
from server.api.request_body import JsonRoute
from server.api.schemas import CompletionBody

LIMITS = ModelLimits(100, 384, 4, ("base", "mix-80"), ("full", "read-70"), ("thinking",))


@pytest.fixture
def described():
    """Return the description of an application with one open and one closed route."""

    def make(has_keys):
        app = FastAPI(title="x")
        app.router.route_class = JsonRoute

        @app.post("/v1/completions", tags=[Scope.INFER])
        async def complete(body: CompletionBody):
            pass

        @app.get("/health", tags=[Scope.PUBLIC])
        async def health():
            pass

        return describe(app, has_keys, LIMITS)

    return make


@pytest.mark.parametrize("vocab", [1, 2, 9, 10, 11, 99, 100, 384, 1000, 1009, 4096])
def test_the_names_of_token_ids_are_the_numbers_below_the_vocabulary(vocab):
    limits = ModelLimits(100, vocab, 4, (), (), ()).keywords()
    pattern = re.compile(limits[Limit.TOKEN_NAMES]["propertyNames"]["pattern"])
    right = {number for number in range(11_000) if pattern.search(str(number))}
    assert right == set(range(vocab))
    assert not any(pattern.search(text) for text in ("", "-1", "01", "1.0", "x", " 1"))


@pytest.mark.parametrize(
    ("body", "is_right"),
    [
        ({"prompt": "x"}, True),
        ({"prompt": [5, 383], "max_tokens": 100, "n": 4, "seed": 2**63 - 1}, True),
        ({"prompt": "x", "trimtab": None, "logit_bias": {"383": 1}}, True),
        ({"prompt": "x", "trimtab": {"variant": "mix-80", "read": "full"}}, True),
        ({"prompt": [384]}, False),
        ({"prompt": ["x"] * 5}, False),
        ({"prompt": []}, False),
        ({"prompt": "x", "max_tokens": 101}, False),
        ({"prompt": "x", "seed": 2**63}, False),
        ({"prompt": "x", "n": 5}, False),
        ({"prompt": "x", "logit_bias": {"384": 1}}, False),
        ({"prompt": "x", "trimtab": {"variant": "other"}}, False),
        ({"prompt": "x", "suffix": "y"}, False),
        ({"prompt": "x", "stop": ""}, False),
        ({"prompt": "x", "stream": "true"}, False),
    ],
)
def test_the_schema_of_a_body_states_the_bounds_of_the_model(described, body, is_right):
    document = described(has_keys=False)
    schema = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]
    whole = {**schema["application/json"]["schema"], "components": document["components"]}
    assert jsonschema.Draft202012Validator(whole).is_valid(body) == is_right


def test_keys_are_described_where_they_are_needed(described):
    document = described(has_keys=True)
    closed, is_open = (document["paths"][path] for path in ("/v1/completions", "/health"))
    assert is_open["get"]["security"] == []
    assert "401" not in is_open["get"]["responses"]
    assert len(closed["post"]["security"]) == len(document["components"]["securitySchemes"]) == 2
    assert "401" in closed["post"]["responses"]
    assert "security" not in described(has_keys=False)["paths"]["/v1/completions"]["post"]


def test_no_mark_is_left_and_nothing_is_described_that_is_not_sent(described):
    text = json.dumps(described(has_keys=True))
    assert "x-limit" not in text
    assert "HTTPValidationError" not in text
    assert '"422"' not in text


def test_a_mark_becomes_the_keywords_of_its_limit():
    schema = {"items": {"type": "integer", **limited_by(Limit.TOKEN)}}
    assert state_limits(schema, LIMITS.keywords()) == {"items": {"type": "integer", "maximum": 383}}
