"""The local API on a Unix socket in the home, beside TCP: for a container that mounts it, say.

Who may open it is who may call the API: its mode is 0600 in a home that is closed to others, and no page in a browser
can reach it, so no token is asked for.
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from pathlib import Path

from aiohttp import web

NAME = "daemon.sock"
_LONGEST = 103  # bytes of a path, on every system
_log = logging.getLogger(__name__)


async def listen(runner: web.AppRunner, home: Path) -> Path | None:
    """Listen on the home's socket; None, and a line in the log, where that cannot be: TCP is enough to serve."""
    path = home / NAME
    if len(bytes(path.absolute())) > _LONGEST:
        _log.warning("%s has too long a path for a socket: there is none", path)
        return None
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Of a daemon that was killed; the home is locked, so nobody listens there.
        if path.is_socket():
            path.unlink()
        listening.bind(str(path))  # under a umask of 077, so there is no moment when others may open it
        path.chmod(0o600)
        await web.SockSite(runner, listening).start()
    except OSError as error:
        listening.close()
        _log.warning("cannot listen on %s: %s", path, error)
        return None
    return path


def remove(path: Path | None) -> None:
    """Remove the socket's file.  Never raises: the next daemon removes what is left."""
    if path is not None:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def came_by_it(request: web.BaseRequest) -> bool:
    """Say whether a request came over a Unix socket."""
    own = request.transport.get_extra_info("socket") if request.transport is not None else None
    return own is not None and own.family == socket.AF_UNIX
