"""What every script asks of a node's answers."""

import asyncio
import time


def equal(got, expected):
    assert got == expected, f"{got!r} instead of {expected!r}"


async def eventually(what, ask):
    """Asks until there is an answer."""
    deadline = time.monotonic() + 10
    while not (answer := await ask()):
        assert time.monotonic() < deadline, f"not within 10 s: {what}"
        await asyncio.sleep(0.05)
    return answer


def refusal(error_type):
    """A check for the errors of one client library: `await refused(call, code, text)`."""

    async def refused(call, code, text):
        """A call that has to fail, with this in the first line of the reason."""
        try:
            reply = await call
        except error_type as error:
            assert error.code == code and text in error.detail.splitlines()[0], f"{error} instead of {code} {text!r}"
        else:
            raise AssertionError(f"not refused but answered: {reply!r}")

    return refused
