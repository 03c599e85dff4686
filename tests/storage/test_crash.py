"""Power loss at every operation of the disk: nothing acknowledged is lost, nothing invented."""

from __future__ import annotations

import random

import pytest

from microos.storage.memory import MemoryDisk
from microos.storage.recovery import segment_name
from tests.storage.history import (
    State,
    Step,
    after,
    assert_legal,
    do,
    entry,
    history,
    opened,
    persist,
    state_of,
)


class PowerLoss(Exception):
    """Ends a process in the middle of an operation."""


class Fuse:
    """Blows at the n-th operation of a disk."""

    def __init__(self, left: int) -> None:
        self.left = left

    async def __call__(self, operation: str, name: str) -> None:
        if operation in ("read", "names"):
            return
        self.left -= 1
        if self.left < 0:
            raise PowerLoss


async def run(platter: MemoryDisk, steps: list[Step], fuse: Fuse) -> list[State]:
    """Live until the fuse blows; return what the log may hold then."""
    platter.before = fuse
    disk = platter.attach()
    legal = [State()]
    try:
        wal, _ = await opened(disk)
        for step in steps:
            legal = [legal[-1], after(legal[-1], step)]
            await do(wal, disk, step)
            legal = legal[-1:]
        await wal.close()
    except PowerLoss:
        pass
    platter.before = None
    return legal


async def recovered(platter: MemoryDisk, legal: list[State]) -> State:
    disk = platter.attach()
    wal, loaded = await opened(disk)
    wal.check()
    await assert_legal(disk, loaded, legal)
    await disk.close()
    return state_of(loaded)


@pytest.mark.prop
@pytest.mark.parametrize("seed", range(4))
async def test_power_loss_anywhere_loses_nothing_acknowledged(seed: int) -> None:
    steps = history(random.Random(seed), 25)
    whole = Fuse(1 << 30)
    await run(MemoryDisk(), steps, whole)

    for at in range((1 << 30) - whole.left):
        for fate in range(2):
            platter = MemoryDisk()
            legal = await run(platter, steps, Fuse(at))
            platter.crash(random.Random(f"{at}/{fate}"))
            found = await recovered(platter, legal)
            platter.crash(random.Random(fate))
            # What recovery has reported is durable, and recovery does nothing twice.
            assert await recovered(platter, [found]) == found


@pytest.mark.prop
@pytest.mark.parametrize("seed", range(12))
async def test_power_loss_during_recovery_loses_nothing_either(seed: int) -> None:
    chance = random.Random(seed)
    steps = history(chance, 15)
    platter = MemoryDisk()
    legal = await run(platter, steps, Fuse(chance.randrange(120)))
    platter.crash(chance)

    for at in range(12):
        platter.before = Fuse(at)
        try:
            await recovered(platter, legal)
        except PowerLoss:
            platter.crash(chance)
    platter.before = None
    platter.kill()

    await recovered(platter, legal)


class CutAt(random.Random):
    """The chance by which every unsynced write is torn at one given byte."""

    def __init__(self, byte: int) -> None:
        super().__init__(0)
        self._byte = byte

    def random(self) -> float:
        return 0.0  # Each name is kept.

    def shuffle(self, x: object) -> None:
        """Leave the writes in their order."""

    def randrange(self, stop: int) -> int:  # type: ignore[override]
        return 2 if stop == 5 else min(self._byte, stop - 1)


@pytest.mark.parametrize("byte", range(0, 512, 3))
async def test_power_lost_again_while_a_torn_end_is_cut_is_no_damage(byte: int) -> None:
    platter = MemoryDisk()
    wal, _ = await opened(platter.attach())
    await wal.write([persist(entry(1, 1), term=1)])
    whole = platter.durable()
    name = segment_name(1)
    used = len(whole[name].rstrip(b"\0"))
    await wal.write([persist(entry(1, 2, b"x" * 90), term=1)])
    torn = platter.durable()[name][: used + 80].ljust(len(whole[name]), b"\0")
    platter.restore({name: torn})

    for at in range(12):
        platter.before = Fuse(at)
        try:
            await opened(platter.attach())
            platter.kill()
        except PowerLoss:
            platter.crash(CutAt(byte))
    platter.before = None
    platter.kill()
    _, loaded = await opened(platter.attach())

    assert loaded.entries == (entry(1, 1),)


@pytest.mark.prop
@pytest.mark.parametrize("seed", range(12))
async def test_a_log_goes_on_over_many_crashes(seed: int) -> None:
    chance = random.Random(seed)
    platter = MemoryDisk()
    state = State()

    for _ in range(12):
        platter.before = Fuse(chance.randrange(60))
        disk = platter.attach()
        legal = [state]
        try:
            wal, loaded = await opened(disk)
            await assert_legal(disk, loaded, legal)
            for step in history(chance, 10, state_of(loaded)):
                legal = [legal[-1], after(legal[-1], step)]
                await do(wal, disk, step)
                legal = legal[-1:]
        except PowerLoss:
            pass
        platter.before = None
        platter.crash(chance)
        state = await recovered(platter, legal)
