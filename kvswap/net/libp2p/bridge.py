"""A trio run in one thread beside asyncio.

asyncio is the node's event loop and owns signals; py-libp2p needs trio.  `TrioThread.call` runs an async function in
trio and awaits its result in asyncio; cancelling the await cancels the trio side.  No exception leaves a wrapper on the
trio side: one that escaped into the nursery would end the host.  When trio has ended, calls raise `P2pDown` and the
node goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from kvswap.core.errors import NetworkTimeout, P2pDown
from kvswap.core.upkeep import describe

T = TypeVar("T")
_GRACE_SECONDS = 5.0  # beyond its own time-out, for a call into a trio that does not answer
Main = Callable[[Callable[[], None]], Awaitable[None]]


def innermost(error: BaseException | None) -> BaseException | None:
    """Return the first plain exception inside nested exception groups; other exceptions are returned unchanged."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error


class TrioThread:
    """A trio run in a thread of its own, which is started once and stopped once."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._up = threading.Event()
        self._done = threading.Event()
        self._open: set[asyncio.Future[Any]] = set()  # calls that wait; on the loop alone

    @property
    def alive(self) -> bool:
        """True while trio runs."""
        return self._up.is_set() and not self._done.is_set()

    @property
    def failure(self) -> str:
        """The reason why trio ended; empty while it runs."""
        return describe(innermost(self._failure) or P2pDown("it stopped")) if self._done.is_set() else ""

    async def start(self, main: Main, seconds: float) -> None:
        """Run `main(ready)` in the thread and wait until it calls `ready`.

        Raises `P2pDown` if it fails, or takes longer than `seconds`.
        """
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, args=(main,), name="kvswap-p2p", daemon=True)
        self._thread.start()

        def wait() -> None:
            while not self._up.wait(0.05) and not self._done.is_set():
                pass

        try:
            async with asyncio.timeout(seconds):
                await asyncio.to_thread(wait)
        except TimeoutError:
            raise P2pDown(f"the peer-to-peer part did not start within {seconds:g} s") from None
        if not self._up.is_set():
            failure = innermost(self._failure)
            if isinstance(failure, P2pDown):
                raise failure
            raise P2pDown(f"the peer-to-peer part did not start: {failure!r}") from failure

    def _run(self, main: Main) -> None:
        async def root() -> None:
            async with trio.open_nursery() as nursery:
                self._token = trio.lowlevel.current_trio_token()
                self._nursery = nursery
                await main(self._up.set)
                nursery.cancel_scope.cancel()

        try:
            trio.run(root)
        except BaseException as error:  # noqa: BLE001 - the thread's end; reported through `alive`
            self._failure = error
        finally:
            self._done.set()
            self._up.clear()
            self.to_loop(self._fail_all)  # trio may have died without completing the calls under way

    def _fail_all(self) -> None:
        for future in self._open:
            if not future.done():
                future.set_exception(P2pDown("the peer-to-peer part stopped", hint="kvswap status"))

    async def call(self, function: Callable[..., Awaitable[T]], *args: Any, seconds: float) -> T:
        """Run `await function(*args)` in trio and return its result.

        Raises `NetworkTimeout` if it takes longer than `seconds`, `P2pDown` if trio ended, or the function's own error.
        The call ends even if trio dies or hangs.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        scope = trio.CancelScope()

        def resolve(set_it: Callable[[Any], None], value: Any) -> None:
            if not future.done():
                set_it(value)

        def report(set_it: Callable[[Any], None], value: Any) -> None:
            try:
                loop.call_soon_threadsafe(resolve, set_it, value)
            except RuntimeError:
                pass  # the loop is closed: nothing waits for the result any more

        async def wrapper() -> None:
            try:
                with scope:
                    with trio.fail_after(seconds):
                        result = await function(*args)
                    report(future.set_result, result)
                    return
                report(future.set_exception, P2pDown("the peer-to-peer part is stopping"))
            except trio.TooSlowError:
                report(future.set_exception, NetworkTimeout(f"no answer within {seconds:g} s"))
            except trio.Cancelled:
                report(future.set_exception, P2pDown("the peer-to-peer part is stopping"))
                raise
            except Exception as error:  # noqa: BLE001 - must not escape into the nursery
                report(future.set_exception, error)
            except BaseException:
                report(future.set_exception, P2pDown("the peer-to-peer part is stopping"))
                raise

        def refused() -> None:
            report(future.set_exception, P2pDown("the peer-to-peer part is stopping"))

        self._open.add(future)
        late = NetworkTimeout(f"the peer-to-peer part did not answer within {seconds:g} s")
        deadline = loop.call_later(seconds + _GRACE_SECONDS, resolve, future.set_exception, late)
        try:
            self._spawn(wrapper, refused)
            return await future
        except asyncio.CancelledError:
            with contextlib.suppress(P2pDown):
                self._soon(scope.cancel)
            raise
        finally:
            deadline.cancel()
            self._open.discard(future)

    def post(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Start `function` in trio without waiting for it; its errors are ignored."""

        async def wrapper() -> None:
            try:
                await function(*args)
            except Exception:  # noqa: BLE001, S110 - fire and forget
                pass

        self._spawn(wrapper)

    def to_loop(self, function: Callable[..., Any], *args: Any) -> None:
        """Call `function` on the asyncio loop, from the trio thread."""
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # the loop is closed

    def _spawn(self, wrapper: Callable[[], Awaitable[None]], refused: Callable[[], None] = lambda: None) -> None:
        def begin() -> None:
            try:
                assert self._nursery is not None  # noqa: S101 - there is a token
                self._nursery.start_soon(wrapper)
            except (AssertionError, RuntimeError):  # trio is ending: an error that escaped here would break it
                refused()

        self._soon(begin)

    def _soon(self, function: Callable[[], Any]) -> None:
        if self._token is None or self._done.is_set():
            raise P2pDown("the peer-to-peer part is not running", hint="kvswap status")
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            raise P2pDown("the peer-to-peer part has stopped", hint="kvswap status") from None

    async def stop(self, seconds: float = 5.0) -> None:
        """Cancel everything in trio and join the thread; a thread that hangs for `seconds` is left behind."""
        with contextlib.suppress(P2pDown):
            self._soon(lambda: self._nursery.cancel_scope.cancel() if self._nursery else None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, seconds)
