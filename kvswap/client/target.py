"""The daemon that a client speaks to: that of a home, by its run-file, or the one at a URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kvswap.core.directories import home_directory
from kvswap.core.errors import UsageError
from kvswap.core.runfile import RunFile

_LOOPBACK = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\]):\d{1,5}/?")
_UNIX = "unix:"


@dataclass(frozen=True, slots=True)
class Address:
    """An address of the API: `url` over TCP, or with `socket` the path of a Unix socket."""

    url: str
    token: str | None
    socket: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The header that shows the token, where there is one."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


@dataclass(frozen=True, slots=True)
class Target:
    """The daemon that a client was made for.  `where` is what messages call it."""

    home: Path
    url: str | None = None
    token: str | None = None

    @classmethod
    def of(cls, home: str | Path | None, url: str | None, token: str | None) -> Target:
        """Check what a caller gave.  Raises `UsageError` for a URL of another machine, or without its token."""
        if token is not None and (not token.isascii() or not token.isprintable()):
            raise UsageError("the token is not of printable ASCII characters")
        if url is None and token is not None:
            raise UsageError("a token goes with a url", hint="Client(url=..., token=...), or Client(home)")
        if url is not None and home is not None:
            raise UsageError("give either a home or a url")
        if url is not None and not url.startswith(_UNIX):
            if not _LOOPBACK.fullmatch(url) or int(url.rstrip("/").rpartition(":")[2]) > 65_535:
                raise UsageError(
                    f"{url} is not the address of a daemon",
                    cause="its API listens on this machine's loopback alone",
                    hint="http://127.0.0.1:PORT, or unix:/path/to/daemon.sock",
                )
            if token is None:
                raise UsageError("a url over TCP needs its token", hint="daemon.json in the daemon's home has both")
        elif url is not None and not Path(url.removeprefix(_UNIX)).is_absolute():
            raise UsageError(f"{url} needs an absolute path", hint="unix:/path/to/daemon.sock")
        return cls(home_directory(str(home) if home is not None else None), url, token)

    @property
    def where(self) -> Path | str:
        """The home, or the URL that was given instead."""
        return self.home if self.url is None else self.url

    def address(self) -> Address:
        """Find the daemon.  Raises `DaemonNotRunning` where the home has none."""
        if self.url is None:
            run = RunFile.read(self.home)
            return Address(run.url, run.token)
        if self.url.startswith(_UNIX):
            return Address("http://localhost", self.token, self.url.removeprefix(_UNIX))
        return Address(self.url.rstrip("/"), self.token)
