"""Origins at real servers: an S3 store and nginx.  `make test-origins`"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kvswap.artifact.archive import file_name
from kvswap.core.errors import IntegrityError, KvswapError, NotFound, OriginError, OriginRefused
from kvswap.core.ids import Cid
from kvswap.core.origin_settings import OriginSettings
from kvswap.exchange.fetch import fetch
from kvswap.exchange.push import push
from kvswap.exchange.try_origin import try_origin
from kvswap.origins.index import OriginIndex
from kvswap.origins.opening import backend_of
from kvswap.origins.port import Backend
from kvswap.origins.web import WebBackend
from tests.exchange.test_fetch import DOCUMENT, world
from tests.origins.places import check_reading, check_writing
from tests.origins.servers import KEY, S3, SECRET, Web, s3_server, web_server
from tests.origins.test_index import artifact, document
from tests.origins.test_pages import PUBLISHER, chain_of
from tests.support import Daemon, key, kvswap, make_artifact, run, stock, until

pytestmark = pytest.mark.origins


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as made:
        yield made


@pytest.fixture
def served(tmp_path: Path) -> Path:
    (tmp_path / "served").mkdir()
    return tmp_path / "served"


@pytest.fixture
def site(tmp_path: Path, served: Path) -> Iterator[Web]:
    (tmp_path / "nginx").mkdir()
    with web_server(tmp_path / "nginx", served) as made:
        yield made


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HOME", str(tmp_path))


def bucket(store: S3, name: str = "kvswap", **more: str) -> OriginSettings:
    return OriginSettings(f"s3://{name}", endpoint=store.endpoint, **more)


# -- an S3 store -----------------------------------------------------------------------------------------


def test_a_bucket_does_what_a_place_must(store: S3) -> None:
    async def body() -> None:
        place: Backend = backend_of(OriginSettings("s3://kvswap/one/prefix", endpoint=store.endpoint))
        await place.check()
        await check_writing(place)
        await check_reading(place)
        assert (await try_origin(bucket(store))).conditional

    run(body(), seconds=120)


def test_wrong_credentials_no_credentials_and_no_bucket(
    store: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def body() -> None:
        await backend_of(bucket(store)).put("public", b"x")
        missing = await try_origin(bucket(store, "nowhere"))
        assert not missing.ok and "no such bucket" in str(missing.problem) and missing.plain
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        wrong = backend_of(bucket(store))
        with pytest.raises(OriginRefused, match="SignatureDoesNotMatch") as raised:
            await wrong.put("x", b"x")
        assert "another" not in str(raised.value.to_dict()) and SECRET not in str(raised.value.to_dict())
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(OriginRefused, match="cannot be used"):
            backend_of(bucket(store))
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        public = backend_of(bucket(store))
        assert (await public.get("public", 10)).data == b"x"
        with pytest.raises(OriginRefused) as refused:
            await public.put("x", b"x")
        assert "no credentials" in refused.value.cause
        with pytest.raises(NotFound):
            await backend_of(bucket(store, "closed")).get("x", 10)
        (tmp_path / ".aws").mkdir()
        text = f"[mine]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
        (tmp_path / ".aws" / "credentials").write_text(text)
        await backend_of(bucket(store, profile="mine")).put("x", b"x")
        with pytest.raises(KvswapError, match="no profile"):
            backend_of(bucket(store, profile="theirs"))
        gone = await try_origin(OriginSettings("s3://kvswap", endpoint="http://127.0.0.1:1"))
        assert not gone.ok and gone.problem

    run(body(), seconds=120)


def test_four_writers_of_one_index_lose_nothing(store: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvswap.origins.pages.PAGE_BYTES", 2_000)

    async def body() -> None:
        settings = OriginSettings("s3://kvswap/index", endpoint=store.endpoint)
        writers = [OriginIndex(backend_of(settings)) for _ in range(4)]

        async def write(writer: OriginIndex, numbers: range) -> None:
            for number in numbers:
                await writer.add(artifact(number), PUBLISHER, document(number), chain_of([7, 7, number, number]))

        await asyncio.gather(*(write(w, range(n, 40, 4)) for n, w in enumerate(writers)))
        for number in range(40):
            assert [e.artifact for e in await writers[0].of_document(document(number))] == [artifact(number)]
            assert (await writers[1].of_chain(chain_of([7, 7, number, number, 1])))[0][0] == 4

    run(body(), seconds=300)


def test_from_one_node_to_another_by_a_bucket_and_a_chunk_that_lies(store: S3, tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            settings = OriginSettings("s3://kvswap/books", endpoint=store.endpoint)
            a, b = await w.node(apart=True), await w.node(apart=True, origins=(settings,))
            made = make_artifact(tokens=100)
            w.give(a, made)
            first = await push(a, DOCUMENT, settings)
            assert first.plain and first.uploaded == len(made.chunks)
            assert (await push(a, DOCUMENT, settings)).uploaded == 0
            assert (await fetch(b, DOCUMENT)).peers == (settings.url,)
            assert b.store.verify().clean
            c = await w.node(apart=True, origins=(settings,))
            place = backend_of(settings)
            for cid, data in made.chunks.items():
                await place.put(file_name(cid), bytes(len(data)))
            with pytest.raises(IntegrityError, match="s3://kvswap/books"):
                await fetch(c, DOCUMENT)
            assert c.ledger.record(settings.url).lies == 1
            again = await push(a, DOCUMENT, settings)
            assert again.uploaded == len(made.chunks)  # what is damaged is not what is there

    run(body(), seconds=120)


# -- nginx -----------------------------------------------------------------------------------------------


def test_a_web_server_does_what_a_place_must(site: Web, served: Path) -> None:
    async def body() -> None:
        await check_writing(backend_of(OriginSettings(f"file://{served}")))
        place = WebBackend(site.http)
        await check_reading(place)
        for path in ("away", "page"):
            other = WebBackend(f"{site.http}/{path}")
            with pytest.raises((OriginError, IntegrityError)):
                await other.read_into("x", memoryview(bytearray(10)), lambda n: None)
            await other.close()
        await place.close()
        strange = WebBackend(site.https)  # a certificate that nobody here trusts
        with pytest.raises(OriginError, match="TLS"):
            await strange.get("a/one", 10)
        await strange.close()

    run(body(), seconds=120)


def test_over_https_from_a_directory_behind_nginx(
    site: Web, served: Path, daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    made = make_artifact(tokens=100)
    (tmp_path / "a").mkdir()
    stock(tmp_path / "a", made)
    served.chmod(0o755)
    a = daemon("a", "--no-p2p")
    a.client.push(made.id, f"file://{served}")
    trusting = {"SSL_CERT_FILE": str(site.certificate), "KVSWAP_MODELS": str(tmp_path / "models")}
    b = daemon("b", "--no-p2p", cold=True, **trusting)
    b.client.trust_add(str(key().peer_id))
    b.client.origin_add(site.https)
    fetched = b.client.fetch(DOCUMENT).report.to_json()
    assert fetched["peers"] == [site.https] and fetched["artifact"] == made.id
    assert not b.client.origins()[0].plain
    led = b.client.origin_test(f"{site.https}/plain")
    assert not led.ok and "https to http" in str(led.problem)


# -- a push that is killed -------------------------------------------------------------------------------


def test_a_push_goes_on_after_a_kill_at_any_moment(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    """Killed while it writes; no reader sees a part, and the next one goes on."""
    made = make_artifact(tokens=400)
    (tmp_path / "a").mkdir()
    stock(tmp_path / "a", made)
    share, rng = tmp_path / "share", random.Random(7)
    share.mkdir()
    reader = daemon("reader", "--no-p2p", KVSWAP_MODELS=str(tmp_path / "models"))
    reader.client.trust_add(str(key().peer_id))
    reader.client.origin_add(f"file://{share}")

    def files() -> int:
        return sum(path.is_file() for path in share.rglob("*"))

    def more_than(least: int) -> bool:
        return files() > least

    for _ in range(6):
        a = daemon("a", "--no-p2p")
        pid, wanted = os.fork(), files() + rng.randrange(1, 12)
        if pid == 0:
            try:
                a.client.push(made.id, f"file://{share}")
            finally:
                os._exit(0)
        until(partial(more_than, min(wanted, len(made.chunks)) - 1), what="a part of it")
        a.process.send_signal(signal.SIGKILL)  # type: ignore[union-attr]
        a.process.wait(60)  # type: ignore[union-attr]
        os.waitpid(pid, 0)
        found = kvswap(reader.home, "fetch", made.id, "--json")
        assert found.returncode in (0, 5), found.stderr
        if found.returncode == 0:
            reader.client.rm(made.id)
    a = daemon("a", "--no-p2p")
    done = a.client.push(made.id, f"file://{share}")
    assert done.uploaded < len(made.chunks)
    assert kvswap(reader.home, "fetch", DOCUMENT).returncode == 0
    assert reader.client.verify(store=True).clean
    assert Cid.parse(made.id)
