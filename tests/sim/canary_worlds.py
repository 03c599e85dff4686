"""The worlds in which canaries die: each is a number's world of one layer, kept small.

Imported only after the hook of `canaries.py` is in place, since what is imported here is
what is mutated.
"""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import trio

from microos.raft.composite import Done
from microos.raft.core import Raft
from microos.raft.election import Role
from microos.raft.entry import Change, Entry
from microos.ring.placement import table
from microos.ring.ring import Row
from microos.settings import GossipSettings, KvSettings, RaftSettings, RingSettings
from microos.sim.cores import CoresWorld
from microos.sim.customers import place_of
from microos.sim.faults import LEADER, Fault
from microos.sim.host import node_id
from microos.sim.network import Weather
from microos.sim.nodes import NodesWorld
from microos.sim.swarm import Config, Store, draw
from microos.sim.world import MILLISECOND, SECOND
from microos.storage.files import DamagedError
from microos.storage.memory import MemoryDisk
from microos.storage.recovery import SUFFIX
from microos.storage.wal import Wal
from tests.storage.history import IDENTITY, ME, SEGMENT, entry, persist


class Fate(msgspec.Struct, frozen=True):
    """What came of one world."""

    number: int
    cause: str = ""
    """Kind and invariant of what failed; empty: the world passed."""
    detail: str = ""
    trace: str = ""
    """Hash of all that happened."""


def _cores(config: Config, plan: list[Fault]) -> Fate:
    world = CoresWorld(config, plan)
    world.run()
    return _fate(config.seed, world)


def _nodes(config: Config, plan: list[Fault]) -> Fate:
    world = NodesWorld(config, plan)
    world.run()
    return _fate(config.seed, world)


def _fate(number: int, world: CoresWorld | NodesWorld) -> Fate:
    failure = world.world.failure
    trace = world.world.trace_hash()
    if failure is None:
        return Fate(number, trace=trace)
    return Fate(number, f"{failure.kind} {failure.invariant}", failure.detail, trace)


def swarm(number: int) -> Fate:
    """A seed of layer `cores`, as the lottery draws it, without a store."""
    config, plan = draw(number, 3 + number % 2 * 2, 20, "cores")
    config.store = None
    return _cores(config, plan)


def nodes(number: int) -> Fate:
    """A seed of layer `node`, as the lottery draws it."""
    return _nodes(*draw(number, 3, 16, "node"))


def quarrel(number: int) -> Fate:
    """A group whose leader is cut off, crashed or deposed before it has finished, again and again.

    Entries travel one by one, so logs come to differ, and old leaders go on for a while.
    """
    chance = random.Random(f"quarrel/{number}")
    config, _ = draw(number, 3, 18, "cores")
    timeout = 0.2
    config = msgspec.structs.replace(
        config,
        weather=Weather(latency_mean_ns=chance.choice((1, 10)) * MILLISECOND, bias=False),
        raft=replace(
            config.raft,
            election_timeout_max=timeout,
            heartbeat_interval=timeout / 8,
            append_entries_max=1,
            inflight_max=chance.choice((1, 8)),
            snapshot_after_entries=1000,
        ),
        sync_ns=MILLISECOND,
        sync_rare=False,
        turn_ns=0,
        clients=2,
        keys=1,
        think_ns=30 * MILLISECOND,
        ttl=1.0,
        triggers_ppm=0,
        store=None,
    )
    plan: list[Fault] = []
    at = SECOND
    while at < config.tail_ns:
        lasts = chance.randrange(50, 600) * MILLISECOND
        one_way = chance.choice((0, 0, 1))
        what: dict[str, int | list[int]] = {
            "node": chance.choice((LEADER, 0, 1, 2)),
            "for_ns": lasts,
        }
        kind = chance.choice(("isolate", "isolate", "crash"))
        plan.append(Fault(at, kind, {**what, "one_way": one_way} if kind == "isolate" else what))
        at += chance.randrange(20, 400) * MILLISECOND
    return _cores(config, plan)


def restless(number: int) -> Fate:
    """Whole nodes under load on slow disks, crashed in the middle of it again and again."""
    config, _ = draw(number, 3, 16, "node")
    config = msgspec.structs.replace(
        _calm(config, timeout=0.5), sync_ns=30 * MILLISECOND, clients=4, think_ns=20 * MILLISECOND
    )
    chance = random.Random(f"restless/{number}")
    plan: list[Fault] = []
    at = 3 * SECOND
    while at < config.tail_ns:
        what: dict[str, int | list[int]] = {"node": chance.choice((LEADER, 0, 1, 2))}
        plan.append(Fault(at, "crash", {**what, "for_ns": 50 * MILLISECOND}))
        at += chance.randrange(200, 900) * MILLISECOND
    return _nodes(config, plan)


def parted(number: int) -> Fate:
    """Whole nodes that take locks with short leases, one of them cut off again and again."""
    timeout = 0.5
    config, _ = draw(number, 3, 18, "node")
    config = msgspec.structs.replace(
        _calm(config, timeout=timeout),
        ppm=[45_000, -45_000, 0],
        clients=2,
        locks=1,
        ttl=2 * timeout,
        think_ns=100 * MILLISECOND,
    )
    chance = random.Random(f"parted/{number}")
    plan: list[Fault] = []
    at = 2 * SECOND
    while at < config.tail_ns:
        lasts = chance.randrange(1000, 2500) * MILLISECOND
        kind, where = chance.choice((("isolate", LEADER), ("isolate", 0), ("isolate", 1)))
        plan.append(Fault(at, kind, {"node": where, "for_ns": lasts}))
        at += lasts + chance.randrange(200, 900) * MILLISECOND
    return _nodes(config, plan)


def _calm(config: Config, *, timeout: float) -> Config:
    """Return a configuration without bad weather and lottery: what happens is in the plan."""
    raft = RaftSettings(
        election_timeout_max=timeout,
        heartbeat_interval=timeout / 8,
        dead_after=12 * timeout,
        quiet=0.5,
    )
    return msgspec.structs.replace(
        config,
        weather=Weather(rare=False, bias=False),
        raft=raft,
        sync_ns=MILLISECOND,
        sync_rare=False,
        turn_ns=0,
        triggers_ppm=0,
        store=None,
    )


class _Figure8(CoresWorld):
    """Figure 8 of the Raft paper, on three members, by a director who cuts links in time.

        A  ... k(t)          leads t, is cut off with an entry nobody else has
        B  ...               votes for both
        C  ... k(t+1)        leads t + 1, and is cut off before its entry reaches B

    A leads again with B's vote and brings k(t) to B: on a majority, of an old term. Before
    an entry of A's new term follows, A is cut off and C comes back, whose log is the newer.
    """

    TICK = MILLISECOND // 5
    act = 0
    a = b = c = 0
    known = 0
    """Last entry of B before A brings it more."""
    acted_ns = 0

    def direct(self) -> None:
        """Look at everybody; go on to the next act when it is time."""
        if self.world.now >= self.config.tail_ns:
            return
        self.world.after(self.TICK, self.direct)
        cores = [member.raft for member in self._members if member is not None]
        if len(cores) < 3 or None in cores:
            return
        if self.act and self.world.now > self.acted_ns + 4 * SECOND:
            self._next(0)  # It came otherwise: begin again.
            self.network._cuts.clear()
        getattr(self, f"_act{self.act}")(cores)

    def _next(self, act: int) -> None:
        self.act, self.acted_ns = act, self.world.now

    def _act0(self, cores: list[Raft]) -> None:
        leader = self.leader()
        if leader is not None and self.world.now > 2 * SECOND and cores[leader].own_term_committed:
            self.a = leader
            for other in _others(leader):
                self._cut(leader, other)
                self._cut(other, leader)
            self._next(1)

    def _act1(self, cores: list[Raft]) -> None:
        """Once B has voted for C, C reaches nobody any more; B's vote is on its way."""
        for c in _others(self.a):
            b = 3 - self.a - c
            core, voter = cores[c].status(), cores[b].status()
            if core.role is Role.CANDIDATE and voter.vote == node_id(c):
                self.b, self.c, self.known = b, c, voter.last_index
                self._cut(c, b)
                longer = cores[self.a].log.last_index > voter.last_index
                self._next(2 if longer else 9)

    def _act2(self, cores: list[Raft]) -> None:
        if cores[self.c].role is Role.LEADER:
            self._cut(self.b, self.c)
            self.network.mend(f"n{self.a}", f"n{self.b}")
            self.network.mend(f"n{self.b}", f"n{self.a}")
            self._next(3)

    def _act3(self, cores: list[Raft]) -> None:
        a, b = cores[self.a], cores[self.b]
        old = b.log.last_term < a.term
        if a.role is Role.LEADER and b.log.last_index > self.known and old:
            self._cut(self.a, self.b)
            self._next(4)

    def _act4(self, cores: list[Raft]) -> None:
        if self.world.now > self.acted_ns + SECOND // 4:
            self.world.sometimes("figure 8")
            self._cut(self.b, self.a)
            self.network.mend(f"n{self.b}", f"n{self.c}")
            self.network.mend(f"n{self.c}", f"n{self.b}")
            self._next(5)

    def _act5(self, cores: list[Raft]) -> None:
        """C leads again, without what a leader that counts old terms holds to be committed."""

    _act9 = _act5

    def _cut(self, sender: int, receiver: int) -> None:
        self.network.cut(f"n{sender}", f"n{receiver}")


def _others(node: int) -> list[int]:
    return [n for n in range(3) if n != node]


def figure_8(number: int) -> Fate:
    """Raft's figure 8, several times over."""
    config, _ = draw(number, 3, 30, "cores")
    config = msgspec.structs.replace(
        _calm(config, timeout=0.5),
        weather=Weather(latency_min_ns=5 * MILLISECOND, rare=False, bias=False),
        clients=4,
        think_ns=20 * MILLISECOND,
        ttl=4.0,
    )
    raft = replace(config.raft, append_entries_max=1, inflight_max=1)
    world = _Figure8(msgspec.structs.replace(config, raft=raft), [])
    world.world.at(0, world.direct)
    world.run()
    assert world.world.failure or world.world.counts.get("figure 8"), "the play was never staged"
    return _fate(number, world)


class _Usurped(NodesWorld):
    """The leader hands over while it holds a lock, and is cut off before it hears of that."""

    def direct(self) -> None:
        if self.world.now >= self.config.tail_ns:
            return
        old = self.leader()
        holds = old is not None and any(
            h.process is self._machines[old].process for h in self._holdings.values()
        )
        if old is None or not holds:
            self.world.after(20 * MILLISECOND, self.direct)
            return
        self.transfer(_others(old)[self.world.now % 2])
        lasts = int(4 * self.config.raft.election_timeout_max * SECOND)
        what: dict[str, int | list[int]] = {"node": old, "for_ns": lasts}
        self.faults.plan([Fault(self.world.now + MILLISECOND // 10, "isolate", what)])
        self.world.after(lasts + SECOND, self.direct)


def usurped(number: int) -> Fate:
    """Whole nodes whose leader is deposed behind its back while it holds a lock."""
    timeout = 0.5
    config, _ = draw(number, 3, 24, "node")
    config = msgspec.structs.replace(
        _calm(config, timeout=timeout), clients=3, locks=1, ttl=2 * timeout, think_ns=2 * SECOND
    )
    world = _Usurped(config, [])
    world.world.at(3 * SECOND, world.direct)
    world.run()
    return _fate(number, world)


def slumber(number: int) -> Fate:
    """A leader that is cut off and sleeps; it wakes into a world that has gone on without it."""
    config, _ = draw(number, 3, 18, "cores")
    config = msgspec.structs.replace(
        _calm(config, timeout=0.2), clients=2, keys=1, think_ns=20 * MILLISECOND, ttl=4.0
    )
    chance = random.Random(f"slumber/{number}")
    plan: list[Fault] = []
    at = SECOND
    while at < config.tail_ns:
        lasts = chance.randrange(200, 600) * MILLISECOND
        what: dict[str, int | list[int]] = {"node": LEADER}
        plan.append(Fault(at, "isolate", {**what, "for_ns": lasts + 300 * MILLISECOND}))
        plan.append(Fault(at, "pause", {**what, "for_ns": lasts}))
        at += SECOND
    return _cores(config, plan)


def worn(number: int) -> Fate:
    """Members whose disks fail a sync now and then; each is to end by it, and to come back."""
    config, _ = draw(number, 3, 18, "cores")
    config = msgspec.structs.replace(
        _calm(config, timeout=0.2), clients=2, keys=1, think_ns=20 * MILLISECOND, ttl=4.0
    )
    chance = random.Random(f"worn/{number}")
    plan: list[Fault] = []
    at = SECOND
    while at < config.tail_ns:
        node = chance.randrange(3)
        plan.append(Fault(at, "sync_error", {"node": node, "for_ns": 1}))
        down: dict[str, int | list[int]] = {"node": node, "for_ns": 100 * MILLISECOND}
        plan.append(Fault(at + chance.randrange(100) * MILLISECOND, "crash", down))
        at += SECOND
    return _cores(config, plan)


def rotten(number: int) -> Fate:
    """A log of a few segments in which one byte that was acknowledged has rotted."""
    return trio.run(_rotten, number)


async def _rotten(number: int) -> Fate:
    chance = random.Random(f"rotten/{number}")
    platter = MemoryDisk()
    disk = platter.attach()
    wal, _ = await Wal.open(disk, IDENTITY, segment_bytes=SEGMENT)
    written = [entry(1, index, chance.randbytes(99)) for index in range(1, 30)]
    for one in written:
        await wal.write([persist(one, term=1, vote=ME, commit=one.index - 1)])
    await disk.close()
    name = chance.choice([name for name in platter.seen() if name.endswith(SUFFIX)])
    data = platter.seen()[name]
    offset = chance.randrange(len(data.rstrip(b"\0")))
    platter.corrupt(name, offset, data[offset] ^ 1 << chance.randrange(8))

    try:
        _, loaded = await Wal.open(platter.attach(), IDENTITY, segment_bytes=SEGMENT)
    except DamagedError:
        return Fate(number)
    if list(loaded.entries) == written or list(loaded.entries) == written[:-1]:
        return Fate(number)
    return Fate(number, "safety storage.rot", f"{name} at {offset}: read what was not written")


def moving(number: int) -> Fate:
    """A busy store whose ring moves on all the time, since somebody is always cut off or gone.

    Restarts are far enough apart for each to be made good before the next one, so nothing that
    was acknowledged may be lost.
    """
    chance = random.Random(f"moving/{number}")
    return _cores(*_moving(number, chance))


def _moving(number: int, chance: random.Random) -> tuple[Config, list[Fault]]:
    config, _ = draw(number, 5, 20, "cores")
    config = _calm(config, timeout=0.2)
    config = msgspec.structs.replace(
        config,
        weather=Weather(latency_mean_ns=chance.choice((1, 5, 20)) * MILLISECOND, bias=True),
        clients=1,
        think_ns=SECOND,
        ttl=4.0,
        members=0,
        store=Store(
            keys=1,
            clients=2,
            think_ns=20 * MILLISECOND,
            call_ns=0,
            ring=RingSettings(batch_window=0.1, batch_window_max=0.1, replace_after=0.5),
            kv=KvSettings(compare_interval=chance.choice((0.5, 5.0)), drop_grace=0.2),
            dead_after_ns=300 * MILLISECOND,
            wrong_ppm=chance.choice((0, 20_000, 100_000)),
        ),
    )
    plan: list[Fault] = []
    at, restart_at = SECOND, 3 * SECOND
    while at < config.tail_ns - SECOND:
        lasts = chance.randrange(100, 2500) * MILLISECOND
        node = chance.randrange(5)
        kind = chance.choice(("isolate", "isolate", "partition", "change", "crash", "pause"))
        if kind == "crash" and at < restart_at:
            kind = "isolate"
        if kind == "crash":
            restart_at = at + 5 * SECOND
        what: dict[str, int | list[int]] = {"node": node, "for_ns": lasts}
        if kind == "partition":
            what = {"side": sorted(chance.sample(range(5), 2)), "for_ns": lasts}
        elif kind == "change":
            what = {"node": LEADER, "number": chance.randrange(1 << 20)}
        plan.append(Fault(at, kind, what))
        at += chance.randrange(200, 1500) * MILLISECOND
    return config, plan


def contended(number: int) -> Fate:
    """The same, with many who write under conditions, and do not agree on who decides."""
    chance = random.Random(f"contended/{number}")
    config, plan = _moving(number, chance)
    assert config.store is not None
    config.store.clients, config.store.think_ns = 3, 10 * MILLISECOND
    config.store.wrong_ppm = 200_000
    return _cores(config, plan)


class _Purged(CoresWorld):
    """A store that forgets the traces of deletes after seconds rather than hours."""

    def direct(self) -> None:
        if self.world.now < self.config.tail_ns:
            self.world.after(SECOND // 2, self.direct)
            for keeping in self._keepings.values():
                upkeep = keeping.keeper.upkeep
                upkeep._purge_at = min(upkeep._purge_at, keeping.host.line.now())


def purged(number: int) -> Fate:
    """Owners that are cut off, but held to be up, while what they have is deleted elsewhere."""
    chance = random.Random(f"purged/{number}")
    config, _ = _moving(number, chance)
    assert config.store is not None
    store = config.store
    store.dead_after_ns, store.wrong_ppm = 20 * SECOND, 0
    store.keys, store.think_ns = 4, SECOND
    store.kv = replace(store.kv, compare_interval=0.5, tombstone_window=0.3)
    plan: list[Fault] = []
    at = 2 * SECOND
    while at < config.tail_ns:
        plan.append(Fault(at, "isolate", {"node": chance.randrange(5), "for_ns": 4 * SECOND}))
        at += 5 * SECOND
    world = _Purged(config, plan)
    world.world.at(SECOND, world.direct)
    world.run()
    return _fate(number, world)


class _Staged(CoresWorld):
    """A play about the owners of a key: acts, and what its directors have at hand."""

    TICK = 5 * MILLISECOND
    act = 0

    def direct(self) -> None:
        """Look at log and ring; go on to the next act when it is time."""
        if self.world.now >= self.config.tail_ns - 3 * SECOND:
            return
        self.world.after(self.TICK, self.direct)
        leader = self.leader()
        if leader is not None and self.world.now > 2 * SECOND:
            getattr(self, f"_act{self.act}")(leader)

    def _is_whole(self, leader: int) -> bool:
        state = self._ring.state
        return len(self._inside(leader)) == len(state.members) == 5 and not state.joint()

    def _inside(self, leader: int) -> list[int]:
        member = self._members[leader]
        assert member is not None
        return [n for n in range(5) if node_id(n) in member.machines.configuration.voters]

    def _propose(self, leader: int, change: Change) -> None:
        member = self._members[leader]
        assert member is not None and member.raft is not None
        member.raft.change(change, member.host.line.now())
        member.soon()


class _Emptied(_Staged):
    """Two owners of a key are let go, and cut off at the very instant at which the slot settles.

    current  a b c ── joint, all know of it ──▶ settled ─┬─ c d e: written here
    next     c d e                                       └─ a b: know nothing of that, are read
    """

    gone: tuple[int, int] = (0, 0)
    until_ns = 0
    slot = place_of(b"p0")[0]

    def _act0(self, leader: int) -> None:
        if self._is_whole(leader):
            owners = _numbers(self._ring.state.current[self.slot])
            a, b = [n for n in owners if n != leader][:2]
            self.gone, self.act = (a, b), 1

    def _act1(self, leader: int) -> None:
        left = [n for n in self.gone if n in self._inside(leader)]
        if left and leader not in left:
            self._propose(leader, Change(remove=(node_id(left[0]),)))
        elif not left:
            self.act = 2

    def _act2(self, leader: int) -> None:
        """Wait until the slot is in change and both owners are told of it."""
        after = _numbers(self._ring.state.next[self.slot])
        if after and not {*self.gone} & {*after}:
            self.act = 3

    def _committed(self, entry: Entry, done: Done) -> None:
        super()._committed(entry, done)
        if self.act == 3 and not self._ring.state.next[self.slot]:
            self.world.sometimes("staged")
            what: dict[str, int | list[int]] = {"side": [*self.gone], "for_ns": SECOND}
            self.faults.plan([Fault(self.world.now, "partition", what)])
            self.until_ns, self.act = self.world.now + 3 * SECOND // 2, 4

    def _act3(self, leader: int) -> None:
        """It settles when its new owners are whole."""

    def _act4(self, leader: int) -> None:
        """Take both in again, and begin anew."""
        if self.world.now > self.until_ns:
            back = tuple(node_id(n) for n in self.gone if n not in self._inside(leader))
            if back:
                self._propose(leader, Change(add_voters=back))
            else:
                self.act = 0


class _Bridged(_Staged):
    """An owner that lacks what was acknowledged is the only source that a new owner reaches.

    a b ── e ── c d      what a and b acknowledge among themselves, c does not hear of
                         the leader, e, lets a go; d takes its place, and reaches c alone
    """

    part: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    """a, b, c, d, e."""
    until_ns = 0

    def _act0(self, leader: int) -> None:
        if not self._is_whole(leader):
            return
        self.part = self._cast()
        if leader != self.part[4]:
            self.transfer(self.part[4])
            return
        what: dict[str, int | list[int]] = {
            "node": leader,
            "side": sorted(self.part[:2]),
            "for_ns": 4 * SECOND,
        }
        self.faults.plan([Fault(self.world.now, "bridge", what)])
        self.until_ns, self.act = self.world.now + SECOND // 2, 1

    def _cast(self) -> tuple[int, int, int, int, int]:
        """Return who plays whom for some key that is in use."""
        state = self._ring.state
        for key in (b"p0", b"a0"):
            owners = _numbers(state.current[place_of(key)[0]])
            for a in owners:
                members = tuple(m for m in state.members if m.node != node_id(a))
                row = table(members, 3)[place_of(key)[0]]
                after = _numbers(tuple(members[index].owner for index in row))
                d = [n for n in after if n not in owners]
                b, c = [n for n in owners if n != a]
                if len(d) == 1:
                    return a, b, c, d[0], 10 - a - b - c - d[0]
        raise AssertionError("no key can be staged")

    def _act1(self, leader: int) -> None:
        if self.world.now > self.until_ns:
            if self.part[0] in self._inside(leader):
                self._propose(leader, Change(remove=(node_id(self.part[0]),)))
            else:
                self.world.sometimes("staged")
                self.until_ns, self.act = self.world.now + 5 * SECOND, 2

    def _act2(self, leader: int) -> None:
        """Take it in again, and begin anew."""
        if self.world.now > self.until_ns:
            if self.part[0] not in self._inside(leader):
                self._propose(leader, Change(add_voters=(node_id(self.part[0]),)))
            else:
                self.act = 0


def _numbers(row: Row) -> list[int]:
    return [int(owner.node, 16) for owner in row]


def _staged(number: int, play: type[_Staged], chance: random.Random) -> Fate:
    config, _ = _moving(number, chance)
    assert config.store is not None
    config.store.wrong_ppm = 0
    config.store.kv = replace(config.store.kv, compare_interval=60.0)
    world = play(config, [])
    world.world.at(0, world.direct)
    world.run()
    assert world.world.failure or world.world.counts.get("staged"), "the play was never staged"
    return _fate(number, world)


def emptied(number: int) -> Fate:
    """Owners that were let go and do not know that their slot has settled elsewhere."""
    return _staged(number, _Emptied, random.Random(f"emptied/{number}"))


def bridged(number: int) -> Fate:
    """New owners that can reach only the one old owner that has missed the latest writes."""
    return _staged(number, _Bridged, random.Random(f"bridged/{number}"))


def hasty(number: int) -> Fate:
    """Callers who do not wait for long, of nodes that are slow to answer."""
    config, plan = _moving(number, random.Random(f"hasty/{number}"))
    assert config.store is not None
    config.store.clients, config.store.call_ns = 1, 20 * MILLISECOND
    return _cores(config, plan)


def dozed(number: int) -> Fate:
    """Whole nodes of which each sleeps for a while, long enough to be held to be dead."""
    config, _ = draw(number, 3, 20, "node")
    config = _calm(config, timeout=0.5)
    gossip = GossipSettings(probe_interval=0.2, probe_timeout_max=0.1, gossip_interval=0.04)
    plan = [
        Fault((4 + 2 * node) * SECOND, "pause", {"node": node, "for_ns": 3 * SECOND // 2})
        for node in (0, 1, 2)
    ]
    return _nodes(msgspec.structs.replace(config, gossip=gossip), plan)
