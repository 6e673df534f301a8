"""The base of results and events: frozen structs, with the names of the JSON contract where they are JSON.

A field's name in JSON is the struct's, or the `name` given with it.  A field that has a default is left out of JSON
where it has that.  Fields that are not known are ignored, so that an older client can speak to a newer daemon.
"""

from __future__ import annotations

import warnings
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any, Self

import msgspec
from msgspec import field, structs


class OldKeys:
    """The access by key that results had as dicts: it works, with a DeprecationWarning, until the next version.

    Keys are those of the JSON contract, and what they give is as in JSON: dicts, lists and values.
    """

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, as `--json` prints it."""
        json: dict[str, Any] = msgspec.to_builtins(self)
        return json

    if not TYPE_CHECKING:  # for a type checker there are only attributes

        def _old(self) -> dict[str, Any]:
            warnings.warn(
                f"{type(self).__name__} is no dict any more: use its attributes, or to_json()",
                DeprecationWarning,
                stacklevel=3,
            )
            return self.to_json()

        def __getitem__(self, key: str) -> Any:
            return self._old()[key]

        def __contains__(self, key: object) -> bool:
            return key in self._old()

        def __iter__(self) -> Iterator[str]:
            return iter(self._old())

        def __len__(self) -> int:
            return len(self._old())

        def __bool__(self) -> bool:
            return True

        def __or__(self, more: dict[str, Any]) -> dict[str, Any]:
            return self._old() | more

        def get(self, key: str, default: Any = None) -> Any:
            """Return the value of a key of the JSON form (deprecated: use the attribute)."""
            return self._old().get(key, default)

        def keys(self) -> KeysView[str]:
            """Return the keys of the JSON form (deprecated: use `to_json`)."""
            return self._old().keys()

        def values(self) -> ValuesView[Any]:
            """Return the values of the JSON form (deprecated: use `to_json`)."""
            return self._old().values()

        def items(self) -> ItemsView[str, Any]:
            """Return the keys and values of the JSON form (deprecated: use `to_json`)."""
            return self._old().items()


class Result(OldKeys, msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A result, or a part of one."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read JSON text.  Raises `msgspec.DecodeError`."""
        return msgspec.json.decode(data, type=cls)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read the JSON form.  Raises `msgspec.ValidationError` for another one."""
        return msgspec.convert(value, cls)


class OpenResult(Result, frozen=True, kw_only=True):
    """A result that has more fields than are named here, which depend on what it is about: `more`.

    In JSON they stand beside the named ones.
    """

    more: dict[str, Any] = field(default_factory=dict)
    """The fields beside the named ones, by their names in JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, as `--json` prints it."""
        json: dict[str, Any] = msgspec.to_builtins(self)
        more: dict[str, Any] = json.pop("more", {})
        return json | more

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read JSON text.  Raises `msgspec.DecodeError`."""
        return cls.from_json(msgspec.json.decode(data))

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read the JSON form.  Raises `msgspec.ValidationError` for another one."""
        if not isinstance(value, dict):
            return msgspec.convert(value, cls)
        named = {spec.encode_name for spec in structs.fields(cls)} - {"more"}
        more = {name: one for name, one in value.items() if name not in named}
        return msgspec.convert({name: value[name] for name in value.keys() & named} | {"more": more}, cls)


def plain(value: Any) -> Any:
    """Return the JSON form of a result, or of a dict or list with results in it."""
    if isinstance(value, Result):
        return value.to_json()
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value
