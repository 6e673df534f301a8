"""The settings of an origin: where it is, how it is reached, and what reading from it costs.

An origin is named by its URL, which the user types: `file:///mnt/share/kv`, `https://example.org/kv`,
`s3://bucket/prefix`.  A name never comes from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import quote, unquote

from kvswap.core import checks
from kvswap.core.checks import Check, shown
from kvswap.core.limits import LIMITS

_LONGEST = 1_024
_SAFE = "/-._~!$'()*+,=@"  # of a path, beside letters and digits
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~!$'()*+,=@%-]+)*")
_WEB = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z.-]{1,253})(:[0-9]{1,5})?((?:/.*)?)")
_BUCKET = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/.*)?)")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class OriginSettings:
    """One origin as its user described it; `url` is its name.  Prices are in US dollars."""

    url: str
    endpoint: str = ""  # of an S3 store other than Amazon's
    region: str = ""
    profile: str = ""  # in ~/.aws/credentials
    price_per_gb: float = 0.0
    price_per_request: float = 0.0
    write: bool = False  # `kvswap push` without a URL goes here

    @property
    def plain(self) -> bool:
        """True if what is read and written can be seen and changed on the way there."""
        return self.url.startswith("http:") or self.endpoint.startswith("http:")

    @property
    def read_price_per_gb(self) -> float:
        """The price of a gigabyte read as chunks of the usual size, requests included, in US dollars."""
        return self.price_per_gb + self.price_per_request * 1e9 / LIMITS.chunk_target_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the settings that are not the usual ones."""
        usual = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != usual[name]}


def url(value: Any) -> str:
    """Check the URL of an origin, and return it in the one form that names it.  Raises `ValueError`."""
    text = value.strip() if isinstance(value, str) else ""
    if not text or len(text) > _LONGEST or not text.isprintable():
        raise ValueError("the URL of an origin, as file:///DIRECTORY, https://HOST/PATH or s3://BUCKET/PREFIX")
    if text.startswith("file:"):
        return _directory(text)
    if text.startswith("s3:"):
        match = _BUCKET.fullmatch(text)
        if match is None or ".." in match[1]:
            raise ValueError(f"an S3 bucket: {shown(text)} should be like s3://BUCKET/PREFIX")
        return f"s3://{match[1]}{_path(match[2])}"
    match = _WEB.fullmatch(text)
    if match is None or (match[3] and not 0 < int(match[3][1:]) < 1 << 16):
        raise ValueError(f"the URL of an origin: {shown(text)} is not file://, https://, http:// or s3://")
    return f"{match[1]}://{match[2].lower()}{match[3] or ''}{_path(match[4])}"


def _path(text: str) -> str:
    path = text.rstrip("/")
    if not _PATH.fullmatch(path):
        raise ValueError(f"the URL of an origin: {shown(text)} is no plain path (no query, fragment, .. or //)")
    return path


def _directory(text: str) -> str:
    """Return the URL of a directory of this machine."""
    path = text.removeprefix("file://").removeprefix("localhost")
    name = unquote(path).rstrip("/")
    if not path.startswith("/") or not name or any(part in ("", ".", "..") for part in name.split("/")[1:]):
        raise ValueError(f"the URL of a directory: {shown(text)} should be like file:///mnt/share")
    return "file://" + quote(name, safe=_SAFE)


def directory_of(origin: str) -> str:
    """Return the directory that a file: URL names."""
    return unquote(origin.removeprefix("file://"))


def endpoint(value: Any) -> str:
    """Check the address of an S3 store: scheme, host and port; empty text means Amazon's.  Raises `ValueError`."""
    if value == "":
        return ""
    match = _WEB.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[4].strip("/") or (match[3] and not 0 < int(match[3][1:]) < 1 << 16):
        raise ValueError(f"the address of an S3 store: {shown(value)} should be like https://HOST:PORT")
    return f"{match[1]}://{match[2].lower()}{match[3] or ''}"


def _word(value: Any) -> str:
    if not isinstance(value, str) or (value and not _WORD.fullmatch(value)):
        raise ValueError("a name of letters, digits, dot, dash, underscore")
    return value


_CHECKS: dict[str, Check] = {
    "url": url,
    "endpoint": endpoint,
    "region": _word,
    "profile": _word,
    "price_per_gb": checks.number(0, 1e9),
    "price_per_request": checks.number(0, 1e9),
    "write": checks.yes_or_no,
}


def origin(given: Mapping[str, Any]) -> OriginSettings:
    """Check the settings of one origin, each value by itself.  Raises `ValueError`, which names the wrong one."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _CHECKS:
            raise ValueError(f"an origin's setting: {shown(name)} is none of {', '.join(_CHECKS)}")
        try:
            values[name] = _CHECKS[name](value)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"right: {name} = {shown(value)} is not {error}") from None
    if "url" not in values:
        raise ValueError("an origin: it has no url")
    made = OriginSettings(**values)
    if made.endpoint and not made.url.startswith("s3:"):
        raise ValueError("right: an endpoint is only for s3:// origins")
    if made.write and made.url.startswith("http"):
        raise ValueError("right: nothing can be written to a web server; push to the store behind it")
    return made


def origins(value: Any) -> tuple[OriginSettings, ...]:
    """Check the origins of a node: tables, or text of URLs with commas between them.  Raises `ValueError`."""
    items = [{"url": item} for item in value.split(",") if item.strip()] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, Mapping) for item in items):
        raise ValueError("a list of origins: [[origins]] with a url each")
    made = [origin(item) for item in items]
    if len(made) > LIMITS.origins:
        raise ValueError(f"at most {LIMITS.origins} origins")
    if len({each.url for each in made}) < len(made):
        raise ValueError("a list in which each origin stands once")
    return tuple(made)
