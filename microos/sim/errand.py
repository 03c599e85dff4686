"""Coroutines on the plain heap: the storage code as it is, without trio, one step per event.

What `Wal` and its kind await is the disk alone, and the memory disk awaits nothing but
its `before` hook. So in layer `cores` the hook yields how long the operation takes, and
the heap resumes the coroutine then: real recovery, real joining, crashes between any two
operations, at a tenth of trio's price.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from microos.sim.world import World


class Delay:
    """`await Delay(ns)`: go on so much later."""

    def __init__(self, ns: int) -> None:
        self._ns = ns

    def __await__(self) -> Generator[int, None, None]:
        yield self._ns


def run_errand(
    world: World,
    work: Coroutine[Any, Any, None],
    *,
    alive: Callable[[], bool],
    gate: Callable[[Callable[[], object]], None],
    failed: Callable[[Exception], None],
) -> None:
    """Run `work` to its end, or until its process is no longer `alive`.

    Args:
        gate: Of the process: its wake-ups pass here.
        failed: Told an exception that leaves `work`.
    """

    def step() -> None:
        if not alive():
            work.close()
            return
        try:
            delay = work.send(None)
        except StopIteration:
            return
        except Exception as error:
            failed(error)
            return
        if isinstance(delay, Parked):
            delay.resume = lambda: gate(step)
        else:
            assert isinstance(delay, int), f"an errand waits for the disk alone, not for {delay!r}"
            world.after(delay, lambda: gate(step))

    step()


class Parked:
    """`await Parked()`: go on when `resume` is called."""

    def __init__(self) -> None:
        self.resume: Callable[[], None] | None = None

    def __await__(self) -> Generator[Parked, None, None]:
        yield self


class ErrandLock:
    """In place of a `trio.Lock`, for code that runs as an errand: first come, first served."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[Parked] = deque()

    async def __aenter__(self) -> None:
        if self._held:
            parked = Parked()
            self._waiting.append(parked)
            await parked
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        if self._waiting:
            resume = self._waiting.popleft().resume
            assert resume is not None
            resume()
        else:
            self._held = False
