"""A session ends with all that is in it, whether its first process listens or not."""

from __future__ import annotations

import asyncio

import pytest

from kvswap.core.subprocesses import end_session
from tests.support import run

CHILD = "(trap '' TERM; exec sleep 1000) & {trap} echo; wait"


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"], ids=["ends", "does not listen"])
def test_a_session_ends_with_what_its_process_started(trap: str) -> None:
    async def body() -> None:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", CHILD.format(trap=trap), stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        await process.stdout.readline()
        await end_session(process, 0.5)
        assert process.returncode is not None
        await process.stdout.read()  # ends once no process has it open any more, the child included
        await end_session(process, 0.5)

    run(body())
