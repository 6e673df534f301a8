"""Schemas of tools: short, and still what the structs say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from kvswap import api
from kvswap.mcp.schemas import arguments_schema, result_schema
from kvswap.mcp.tools import TOOLS, AskArguments, OfDocument


def test_arguments_have_their_bounds_and_nothing_else_is_taken() -> None:
    schema = arguments_schema(AskArguments)
    assert schema["required"] == ["question"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["max_tokens"] == {"type": "integer", "minimum": 1, "maximum": 4096}
    assert schema["properties"]["ref"]["type"] == ["string", "null"]
    for wrong in ({}, {"question": "x", "tofu": True}, {"question": "x", "max_tokens": 0}, {"question": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, AskArguments)


def test_a_result_schema_has_every_field_but_those_left_out() -> None:
    fields = {spec.encode_name for spec in msgspec.structs.fields(api.AskResult)}
    schema = result_schema(api.AskResult, ("token_ids",))
    assert set(schema["properties"]) == fields - {"token_ids"}
    assert schema["properties"]["from"]["type"] == "array"  # by its name in JSON
    assert schema["properties"]["plan"] == {"type": "object"}  # not described further down
    deeper = result_schema(api.AskResult, (), 1)
    assert set(deeper["properties"]["plan"]["properties"]) == {"action", "seconds", "dollars", "reason"}


def test_a_result_of_another_form_does_not_fit() -> None:
    schema = result_schema(api.FindResult, deep=1)
    jsonschema.validate({"reference": "x", "artifacts": [], "prefix": None, "left_out": 0, "peers": 1}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"artifacts": [{"trusted": "yes"}]}, schema)


def tokens(tools: Any, tokenizer: Any) -> int:
    return len(tokenizer.encode(json.dumps({"tools": tools}, separators=(",", ":"))).ids)


def test_the_list_of_tools_is_short(default_model: Path) -> None:
    """Counted by SmolLM2's tokenizer, of 49,152 tokens; agents' own have more, and make fewer of it."""
    from tokenizers import Tokenizer

    from kvswap.mcp.server import listed

    tokenizer = Tokenizer.from_file(str(default_model / "tokenizer.json"))

    def told(output: bool) -> list[dict[str, Any]]:
        every = (listed(tool, output=output) for tool in TOOLS)
        return [one.model_dump(by_alias=True, exclude_none=True, mode="json") for one in every]

    assert tokens(told(False), tokenizer) < 1_000
    assert tokens(told(True), tokenizer) < 2_200


def test_one_of_two_references_is_needed() -> None:
    from kvswap.core.errors import UsageError

    digest = "sha256:" + 64 * "0"
    assert OfDocument(ref=digest).named() == (digest, None)
    reference, text = OfDocument(text="some text").named()
    assert reference.startswith("sha256:") and text == "some text"
    for wrong in (OfDocument(), OfDocument(ref=digest, text="some text"), OfDocument(ref="/etc/passwd")):
        with pytest.raises(UsageError):
            wrong.named()
