"""JSON schemas of tools, made from msgspec structs and short: an agent's model reads them again with every prompt.

What a struct says is kept - names, types, bounds, what is required - and what costs more tokens than it tells is left
out: titles, defaults, and descriptions but those of arguments.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

_TELLING = ("type", "enum", "minimum", "maximum", "minLength", "maxLength", "maxItems")


def arguments_schema(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Make the schema of a tool's arguments, with their descriptions."""
    return _objects(kind, described=True, deep=1)


def result_schema(kind: type[msgspec.Struct], without: Collection[str] = (), deep: int = 0) -> dict[str, Any]:
    """Make the schema of a tool's result.

    `without`: fields that are left out of it.  `deep`: how many levels of structs below it are described; those further
    down are named objects.
    """
    return _objects(kind, described=False, deep=deep, without=without)


def _objects(
    kind: type[msgspec.Struct], *, described: bool, deep: int, without: Collection[str] = ()
) -> dict[str, Any]:
    ((reference,), parts) = msgspec.json.schema_components([kind], ref_template="{name}")
    whole = parts[reference["$ref"]]
    made = _short(whole, parts, deep + 1, described)
    made["properties"] = {name: value for name, value in made.get("properties", {}).items() if name not in without}
    if "required" in made:
        made["required"] = [name for name in made["required"] if name not in without]
    return made


def _short(schema: dict[str, Any], parts: dict[str, Any], deep: int, described: bool) -> dict[str, Any]:
    """Shorten a schema; `deep`: levels of objects that are still described."""
    if "$ref" in schema:
        return _short(parts[schema["$ref"]], parts, deep, described)
    if "anyOf" in schema:
        return _either([_short(one, parts, deep, described) for one in schema["anyOf"]])
    out = {name: schema[name] for name in _TELLING if name in schema}
    if described and "description" in schema and "properties" not in schema:
        out["description"] = schema["description"]
    if "items" in schema and deep:
        out["items"] = _short(schema["items"], parts, deep, described)
    if "properties" in schema and deep:
        inner = schema["properties"].items()
        out["properties"] = {name: _short(one, parts, deep - 1, described) for name, one in inner}
        if described and schema.get("required"):
            out["required"] = schema["required"]
        if schema.get("additionalProperties") is False:
            out["additionalProperties"] = False
    return out


def _either(kinds: list[dict[str, Any]]) -> dict[str, Any]:
    """Join what may be one thing or null into one schema, as `{"type": ["string", "null"]}`."""
    kinds_left = [one for one in kinds if one != {"type": "null"}]
    if len(kinds_left) != 1 or "type" not in kinds_left[0] or "enum" in kinds_left[0]:
        return {"anyOf": kinds}
    return {**kinds_left[0], "type": [kinds_left[0]["type"], "null"]} if len(kinds_left) < len(kinds) else kinds_left[0]
