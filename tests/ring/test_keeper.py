"""The data plane of a few nodes: what was acknowledged is found, whatever happens to the ring."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import inf

import msgspec
import pytest

from microos.errors import ConflictError, MicroosError, NoQuorumError, UncertainError
from microos.ring import upkeep
from microos.ring.entry import is_tombstone
from microos.ring.keeper import Keeper, Moved, Told, Up
from microos.ring.messages import Answer, Code, Kept, Write
from microos.ring.ring import Owner
from microos.types import BootId, NodeId, Version
from tests.ring.keepers import SETTINGS, Operation, World, judge, judge_times, value, version
from tests.ring.log import Log

pytestmark = pytest.mark.prop


def formed(seed: int = 0, nodes: int = 5) -> World:
    """Return a calm world whose first ring epoch every node has taken in."""
    world = World(seed, nodes, calm=True)
    world.run(4.0)
    assert all(node.keeper is not None and node.keeper.ring.number == 1 for node in world.nodes)
    return world


def done(world: World, operation: Operation | None, within: float = 3.0) -> object:
    assert operation is not None
    world.run(world.now + within)
    assert operation.ended <= world.now, "the operation has no outcome"
    return operation.result


@pytest.mark.parametrize("one", [False, True])
def test_what_one_node_puts_every_node_gets(one: bool) -> None:
    world = formed()

    put = done(world, world.do(0, "put", b"k", 7, one=one))

    for number in range(5):
        found = done(world, world.do(number, "get", b"k", one=one))
        assert (version(found), value(found)) == (put, 7)


def test_a_deleted_key_is_gone_everywhere() -> None:
    world = formed()
    done(world, world.do(0, "put", b"k", 7))

    done(world, world.do(3, "delete", b"k"))

    assert [value(done(world, world.do(n, "get", b"k"))) for n in range(5)] == [None] * 5
    assert all(e is not None and is_tombstone(e) for e in world.entries(b"k"))


def test_a_key_nobody_wrote_is_none() -> None:
    world = formed()

    assert done(world, world.do(2, "get", b"never")) is None


def test_an_absent_key_is_taken_once() -> None:
    world = formed()

    tries = [world.do(n % 5, "put", b"k", n, condition=Version(0)) for n in range(20)]
    results = [done(world, one) for one in tries]

    won = [r for r in results if isinstance(r, int)]
    lost = [r for r in results if isinstance(r, ConflictError)]
    assert (len(won), len(lost)) == (1, 19)
    assert {r.reason for r in lost} == {"exists"}


def test_a_version_is_written_over_once() -> None:
    world = formed()
    first = done(world, world.do(1, "put", b"k", 0, condition=Version(0)))
    assert isinstance(first, int)

    tries = [world.do(n, "put", b"k", n, condition=Version(first)) for n in range(5)]
    results = [done(world, one) for one in tries]

    assert sum(isinstance(r, int) for r in results) == 1
    assert sum(isinstance(r, ConflictError) and r.reason == "version" for r in results) == 4


@pytest.mark.parametrize("seed", range(6))
def test_counting_by_compare_and_set_loses_nothing_and_no_read_fails(seed: int) -> None:
    """Found by seed 3: readers and the writer refused each other's ballots until the deadline."""
    world = formed(seed)
    count = [0]

    def again(number: int, left: int) -> None:
        if left == 0:
            return
        read = world.do(number, "get", b"count")

        def write() -> None:
            assert read is not None
            if read.ended > world.now:
                world.at(world.now + 0.01, write)
                return
            known = value(read.result) or 0
            put = world.do(
                number, "put", b"count", known + 1, condition=Version(version(read.result))
            )

            def look() -> None:
                assert put is not None
                if put.ended > world.now:
                    world.at(world.now + 0.01, look)
                elif isinstance(put.result, int):
                    count[0] += 1
                    again(number, left - 1)
                else:
                    assert isinstance(put.result, ConflictError), put.result
                    again(number, left)

            look()

        write()

    for number in range(5):
        again(number, 10)
    world.run(60.0)

    assert count[0] == 50
    assert value(done(world, world.do(0, "get", b"count"))) == 50


@pytest.mark.criterion("KV-2")
@pytest.mark.parametrize("seed", range(5))
def test_one_crash_right_after_the_acknowledgement_loses_nothing(seed: int) -> None:
    world = formed(seed)
    put = world.do(0, "put", b"k", 7)
    assert put is not None
    while put.ended > world.now:
        world.run(world.now + 0.001)
    owners = [int(o.node, 16) - 1 for o in world.states[-1].current[_slot()]]

    world.crash(owners[seed % 3])

    for number in range(5):
        if world.nodes[number].keeper is not None:
            assert value(done(world, world.do(number, "get", b"k"))) == 7


@pytest.mark.criterion("KV-2")
@pytest.mark.parametrize("seed", range(5))
def test_two_crashes_at_once_give_the_value_or_no_quorum_never_nothing(seed: int) -> None:
    world = formed(seed)
    put = done(world, world.do(0, "put", b"k", 7))
    owners = [int(o.node, 16) - 1 for o in world.states[-1].current[_slot()]]
    for owner in owners[:2]:
        world.crash(owner)

    for _ in range(10):
        for number in range(5):
            found = world.do(number, "get", b"k")
            if found is not None:
                result = done(world, found, 2.5)
                assert isinstance(result, NoQuorumError) or version(result) == put
    survivor = done(world, world.do(owners[2], "get", b"k", one=True))
    assert value(survivor) == 7

    # Their boots end for good: what the survivor has is what there is, on three owners again.
    for owner in owners[:2]:
        world.start(owner)
    world.run(world.now + 20.0)
    assert version(done(world, world.do(0, "get", b"k"))) == put
    assert [version(entry) for entry in world.entries(b"k")] == [put] * 3


def _slot() -> int:
    from microos.ring.ring import seed_of, slot_of

    return slot_of(seed_of("b"), b"k")


def test_a_joiner_takes_its_share_and_nothing_is_lost() -> None:
    world = World(11, 6, calm=True)
    world.crash(5)
    world.run(4.0)
    puts = {b"%d" % n: world.do(n % 5, "put", b"%d" % n, n) for n in range(200)}
    world.run(8.0)

    world.start(5)
    world.run(30.0)

    ring = world.states[-1]
    assert not ring.joint()
    assert any(ring.current[slot][0] == world.nodes[5].owner for slot in range(1024))
    for n, (key, put) in enumerate(puts.items()):
        assert put is not None
        assert [version(entry) for entry in world.entries(key)] == [put.result] * 3
        assert value(done(world, world.do(n % 6, "get", key), 0.2)) == n
    # What is no longer theirs is dropped.
    assert all(node.keeper and node.keeper.is_settled for node in world.nodes)
    world.check()


def test_a_leaver_hands_everything_over() -> None:
    world = formed(5, 2)
    puts = {b"%d" % n: world.do(0, "put", b"%d" % n, n) for n in range(100)}
    world.run(8.0)

    world.nodes[0].participates = False
    world.run(20.0)
    assert world.nodes[0].keeper is not None
    assert world.nodes[0].keeper.ring.slots_of(world.nodes[0].owner) == ()
    assert len(world.nodes[0].keeper.replica.store) == 0
    world.crash(0)

    # One copy is left of each (N = 1), and then the next node leaves it to another.
    for key, put in puts.items():
        assert put is not None
        assert version(done(world, world.do(1, "get", key), 0.2)) == put.result


def test_a_value_ends_everywhere_and_its_trace_remains() -> None:
    world = formed(2)
    begun = world.now
    put = world.do(0, "put", b"k", 7, left=1000)
    read: list[tuple[float, int | None]] = []
    for _ in range(30):
        found = world.do(len(read) % 5, "get", b"k")
        assert found is not None
        asked = world.now
        world.run(world.now + 0.05)
        read.append((asked - begun, value(found.result)))

    assert put is not None
    assert all(v == 7 for at, v in read if 0.05 < at < 0.95)
    assert all(v is None for at, v in read if at > 1.05)
    world.run(world.now + 0.1)
    assert all(e is not None and is_tombstone(e) for e in world.entries(b"k"))


@pytest.mark.parametrize("seed", range(3))
def test_both_sides_of_a_split_write_and_agree_after_it(seed: int) -> None:
    world = formed(seed)
    world.split([3, 4])
    world.run(world.now + 2.5)
    puts = [
        world.do(n, "put", b"key%d" % k, 10 * n + k, one=True) for n in range(5) for k in range(20)
    ]
    world.run(world.now + 1.0 + 10.0 * (seed == 2))
    world.heal()
    world.run(world.now + 30.0)

    for k in range(20):
        written = [
            p for p in puts if p is not None and p.key == b"key%d" % k and isinstance(p.result, int)
        ]
        newest = max(written, key=lambda p: p.result)  # type: ignore[arg-type, return-value]
        entries = world.entries(b"key%d" % k)
        assert [(version(e), value(e)) for e in entries] == [(newest.result, newest.value)] * 3


def test_a_write_kept_before_the_ring_moved_on_is_uncertain_when_nobody_is_left() -> None:
    """Found by world moving/1: it was said not to have happened, and read."""
    log = Log().propose("bcd")
    keeper = Keeper(
        Owner(NodeId("000000000000000a"), BootId(1)),
        SETTINGS,
        random=random.Random(1),
        now=0.0,
        wall=1e9,
    )
    keeper.receive(Moved(log.state.ring(), b""), 0.0)
    keeper.receive(Up({NodeId(name): BootId(1) for name in "abcd"}), 0.0)
    keeper.put(7, b"k", b"v", left=0, one=False, version=None, deadline=1.0, now=0.0)
    ask = keeper.take().asks[0]
    log.propose("be")
    assert log.state.next[7]

    newer, codes = log.state.revision, bytes((Code.NEWER_SLOT,))
    keeper.receive(Told(ask.token, Kept(Code.OK, newer, 1, codes)), 0.1)
    again = next(ask for ask in keeper.take().asks if isinstance(ask.request, Write))
    keeper.receive(Told(again.token, Answer(Code.NEWER_SLOT, newer, 1)), 0.1)
    keeper.receive(Up({NodeId("a"): BootId(1)}), 0.1)
    keeper.receive(Moved(log.state.ring(), b""), 0.1)

    ((_, result),) = keeper.take().done
    assert isinstance(result, UncertainError)


@pytest.mark.criterion("KV-8", "KV-18")
@pytest.mark.parametrize("seed", range(12))
def test_no_acknowledged_write_is_lost_and_no_read_goes_back(seed: int) -> None:
    """At most one boot ends between two times of rest; splits, late messages, ring changes."""
    world = World(seed, 5)
    chance = random.Random(seed)
    world.run(4.0)

    def user(number: int) -> None:
        key = b"k%d" % chance.randrange(4)
        kind = chance.choice(["get", "get", "put", "put", "delete"])
        world.do(number, kind, key, chance.randrange(1000))
        atomic = b"a%d" % chance.randrange(2)
        known = [o for o in world.history if o.key == atomic and isinstance(o.result, int)]
        condition = Version(known[-1].result if known else 0)  # type: ignore[arg-type]
        if chance.random() < 0.5:
            world.do(number, "put", atomic, chance.randrange(1000), condition=condition)
        else:
            world.do(number, "get", atomic)
        world.at(world.now + 0.2 * chance.random(), lambda: user(number))

    for number in range(5):
        world.at(world.now, lambda number=number: user(number))  # type: ignore[misc]
    for _ in range(4):
        victim = chance.randrange(5)
        match chance.randrange(3):
            case 0:
                world.crash(victim)
                world.run(world.now + 8.0 * chance.random())
                world.start(victim)
            case 1:
                world.split(sorted({victim, chance.randrange(5)}))
                world.run(world.now + 10.0 * chance.random())
                world.heal()
            case _:
                world.nodes[victim].participates ^= True
                world.run(world.now + 3.0)
        world.run(world.now + 8.0)
        world.check()
    world.run(world.now + 10.0)

    assert judge(world.history) == []
    assert sum(isinstance(o.result, int) for o in world.history) > 200


def users(
    world: World,
    chance: random.Random,
    *,
    lefts: Sequence[int] = (0,),
    cancels: bool = False,
    one: bool = False,
) -> Callable[[], None]:
    """Let a user at each node do this and that; return what stops them."""
    runs = [True]

    def user(number: int) -> None:
        if not runs[0]:
            return
        key = b"k%d" % chance.randrange(4)
        kind = chance.choice(["get", "get", "put", "put", "delete"])
        left = chance.choice(lefts)
        did = [world.do(number, kind, key, chance.randrange(1000), left=left)]
        if one:
            world.do(number, "get", key, one=True)
        atomic = b"a%d" % chance.randrange(2)
        known = [o for o in world.history[-200:] if o.key == atomic and isinstance(o.result, int)]
        condition = Version(known[-1].result if known else 0)  # type: ignore[arg-type]
        if chance.random() < 0.5:
            value = chance.randrange(1000)
            did.append(world.do(number, "put", atomic, value, condition=condition, left=left))
        else:
            did.append(world.do(number, "get", atomic))
        for operation in did:
            if cancels and operation is not None and chance.random() < 0.4:
                world.at(world.now + 0.05 * chance.random() ** 3, operation.cancel)
        world.at(world.now + 0.2 * chance.random(), lambda: user(number))

    for number in range(len(world.nodes)):
        world.at(world.now, lambda number=number: user(number))  # type: ignore[misc]

    def stop() -> None:
        runs[0] = False

    return stop


def trouble(world: World, chance: random.Random, times: int = 4) -> None:
    """Let this and that befall the nodes; at most one boot ends between two times of rest."""
    count = len(world.nodes)
    for _ in range(times):
        victim = chance.randrange(count)
        match chance.randrange(4):
            case 0:
                world.crash(victim)
                world.run(world.now + 8.0 * chance.random())
                world.start(victim)
            case 1:
                world.split(sorted({victim, chance.randrange(count)}))
                world.run(world.now + 10.0 * chance.random())
                world.heal()
            case 2:
                world.nodes[victim].participates = False
                world.run(world.now + 3.0)
                world.nodes[victim].participates = True
            case _:
                # A process that starts again within a moment, while the ring changes.
                world.nodes[(victim + 1) % count].participates = False
                world.run(world.now + chance.random())
                world.crash(victim)
                world.run(world.now + 0.2 * chance.random())
                world.start(victim)
                world.nodes[(victim + 1) % count].participates = True
        world.run(world.now + 8.0)
        world.check()


@pytest.mark.criterion("KV-18")
@pytest.mark.parametrize("seed", range(2))
def test_of_cancelled_operations_nothing_is_left_and_nothing_is_lost(seed: int) -> None:
    world = World(seed, 5)
    chance = random.Random(seed)
    world.run(4.0)
    stop = users(world, chance, cancels=True)
    trouble(world, chance, 3)

    stop()
    world.calm, world.loss = True, 0.0
    world.run(world.now + 15.0)

    assert judge(world.history) == []
    assert any(o.ended == inf for o in world.history)
    for _ in range(3):
        if world.leftovers():  # A comparison may be under way.
            world.run(world.now + 0.5)
    assert world.leftovers() == []


@pytest.mark.criterion("KV-6")
@pytest.mark.parametrize("seed", range(2))
def test_no_read_gives_a_value_beyond_its_time(seed: int) -> None:
    world = World(seed, 5)
    world.late = False
    chance = random.Random(seed)
    world.run(4.0)
    users(world, chance, lefts=(0, 200, 1000, 5000), one=True)
    trouble(world, chance, 3)

    assert judge_times(world.history) == []
    assert judge([o for o in world.history if not o.one]) == []
    ended = [o for o in world.history if o.kind == "get" and isinstance(o.result, bytes)]
    assert sum(value(o.result) is None for o in ended) > 100


@pytest.mark.criterion("KV-2", "KV-18")
@pytest.mark.parametrize("seed", range(3))
def test_only_what_too_many_owners_took_with_them_is_lost(seed: int) -> None:
    world = World(seed, 6)
    chance = random.Random(seed)
    world.run(4.0)
    users(world, chance)
    for _ in range(4):
        victims = chance.sample(range(6), chance.choice([1, 2, 2, 3]))
        for victim in victims:
            world.crash(victim)
            world.run(world.now + 0.3 * chance.random())
        world.run(world.now + 3.0 * chance.random())
        for victim in victims:
            world.start(victim)
        world.run(world.now + 12.0)
        world.check()

    assert world.losses
    assert judge(world.history, world.losses) == []


@pytest.mark.criterion("KV-7")
@pytest.mark.parametrize("seed", range(2))
def test_what_was_deleted_stays_deleted_when_its_trace_is_forgotten(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traces are kept for 20 s here, longer than anybody is away, and purged every second."""
    monkeypatch.setattr(upkeep, "PURGE_INTERVAL", 1.0)
    brief = msgspec.structs.replace(SETTINGS, tombstone_window=20.0, compare_interval=1.0)
    world = World(seed, 5, settings=brief)
    chance = random.Random(seed)
    world.run(4.0)
    keys = [b"d%d" % n for n in range(40)]
    for n, key in enumerate(keys):
        world.do(n % 5, "put", key, n)
    world.run(world.now + 3.0)
    deleted = {key: world.do(n % 5, "delete", key) for n, key in enumerate(keys)}
    world.run(world.now + 1.0)
    stop = users(world, chance)
    trouble(world, chance)
    stop()
    world.calm, world.loss = True, 0.0
    world.run(world.now + 20.0)

    gone = [key for key, done in deleted.items() if done and isinstance(done.result, int)]
    assert len(gone) > 20
    for key in gone:
        assert value(done(world, world.do(chance.randrange(5), "get", key))) is None
        assert world.entries(key) == [None] * 3


@pytest.mark.criterion("KV-7")
@pytest.mark.parametrize("seed", range(2))
def test_who_was_away_longer_than_traces_are_kept_brings_nothing_back(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "PURGE_INTERVAL", 1.0)
    brief = msgspec.structs.replace(SETTINGS, tombstone_window=4.0, compare_interval=1.0)
    world = World(seed, 5, calm=True, settings=brief)
    world.run(4.0)
    keys = [b"d%d" % n for n in range(40)]
    for n, key in enumerate(keys):
        world.do(n % 5, "put", key, n)
    world.run(world.now + 2.0)
    world.split([4])
    world.run(world.now + 6.0)
    for n, key in enumerate(keys[:20]):
        world.do(n % 4, "delete", key)
    world.run(world.now + 12.0)
    assert [world.entries(key) for key in keys[:20]] == [[None] * 3] * 20

    world.heal()
    reads: list[tuple[int, Operation | None]] = []
    while len(reads) < 2000:
        reads += [(n, world.do(len(reads) % 5, "get", key)) for n, key in enumerate(keys)]
        world.run(world.now + 0.3)
    world.run(world.now + 3.0)

    assert any(world.nodes[4].owner in world.states[-1].current[slot] for slot in range(1024))
    for n, read in reads:
        assert read is not None
        if not isinstance(read.result, MicroosError):
            assert value(read.result) == (None if n < 20 else n)
    for n, key in enumerate(keys):
        assert [value(entry) for entry in world.entries(key)] == [None if n < 20 else n] * 3
