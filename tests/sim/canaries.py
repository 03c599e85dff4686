"""Mutants that the simulated world has to find: proof that its checkers can fail.

A checker that never fails may be blind. So each canary breaks one rule of the production
code and names the world that has to notice, and by which invariant:

    text ──(once in the module)──▶ replacement ──▶ a fresh process ──▶ worlds ──▶ dies by ...
                                   nothing changed ──▶ a fresh process ──▶ the same world passes

Production code carries no switch. The source of one module is changed on its way into the
interpreter; the text must stand in it exactly once, so a canary cannot rot unnoticed.

    python -m tests.sim.canaries NAME                    run its worlds until one kills it
    python -m tests.sim.canaries NAME --sound --world N  run world N on the code as it is

Seeds die when code draws differently, so a canary names many worlds: the first is the one
that killed it last time, and the next ones are there for the day it no longer does.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One mutant, and how it must die."""

    name: str
    breaks: str
    """The rule that is broken, in words."""
    module: str
    text: str
    """Stands in the module exactly once."""
    replacement: str
    world: str
    """A function of `canary_worlds`: takes a number, returns a `Fate`."""
    dies: tuple[str, ...]
    """The checkers that may kill it: kind and invariant, as `Fate.cause` has them."""
    worlds: Sequence[int]
    """Numbers of the worlds to try, in order; the first to kill it counts."""


def first(known: int, tries: int) -> tuple[int, ...]:
    """Return `known`, then 0, 1, ... up to `tries` numbers in all."""
    return (known, *(n for n in range(tries) if n != known))[:tries]


KV_BREACH = tuple(
    f"safety kv.{invariant}"
    for invariant in (
        "hidden",
        "stale_read",
        "order",
        "lost",
        "written_twice",
        "absent_once",
        "version",
    )
)
"""How it shows that the store has broken its word."""

CANARIES = (
    Canary(
        name="acknowledges-before-it-is-durable",
        breaks="A follower's answer leaves while its disk still writes what it answers for.",
        module="microos.raft.core",
        text="answer.index))\n        self._writes.promise(sender, answer)",
        replacement="answer.index))\n        self._out.send(sender, answer)",
        world="swarm",
        dies=("safety raft.durability",),
        worlds=first(0, 10),
    ),
    Canary(
        name="writes-without-a-sync",
        breaks="A batch is reported durable once it is written, before any sync.",
        module="microos.storage.wal",
        text="        await self._file.write([batch], self._offset, sync=True)\n",
        replacement="        await self._file.write([batch], self._offset)\n",
        world="swarm",
        dies=("exception n?.DamagedError", "safety raft.entry_lost", "safety raft.vote_*"),
        worlds=first(0, 20),
    ),
    Canary(
        name="retries-a-failed-sync",
        breaks="After a failed sync another one is believed, though the pages are clean by then.",
        module="microos.storage.wal",
        text="        await self._file.write([batch], self._offset, sync=True)\n",
        replacement=(
            "        try:\n"
            "            await self._file.write([batch], self._offset, sync=True)\n"
            "        except OSError:\n"
            "            await self._file.sync()\n"
        ),
        world="worn",
        dies=("exception n?.DamagedError", "safety raft.entry_lost", "safety raft.vote_*"),
        worlds=first(2, 20),
    ),
    Canary(
        name="believes-rotten-records",
        breaks="The check of a record is not looked at.",
        module="microos.storage.records",
        text=(
            "    if crc != _crc(length, kind, flags, check, number, payload, salt):\n"
            "        return None\n"
        ),
        replacement="",
        world="rotten",
        dies=("safety storage.rot",),
        worlds=first(0, 4),
    ),
    Canary(
        name="forgets-its-vote-over-a-restart",
        breaks="The log is given the term, not the vote.",
        module="microos.storage.recovery",
        text="return Record(RecordKind.HARD_STATE, encode(hard_state))",
        replacement=(
            "return Record(RecordKind.HARD_STATE, "
            "encode(HardState(hard_state.term, NodeId(''), hard_state.commit)))"
        ),
        world="swarm",
        dies=("safety raft.vote_changed", "safety raft.voted_twice"),
        worlds=first(1, 20),
    ),
    Canary(
        name="votes-for-older-logs",
        breaks="A vote is granted without comparing logs.",
        module="microos.raft.election",
        text="return (free or ahead) and log.is_at_least(asked.last_index, asked.last_term)",
        replacement="return free or ahead",
        world="swarm",
        dies=("safety raft.leader_completeness",),
        worlds=first(3, 30),
    ),
    Canary(
        name="appends-behind-an-entry-it-lacks",
        breaks="A follower does not compare the entry before those it takes over.",
        module="microos.raft.replication",
        text="if log.term(append.previous_index) == append.previous_term:",
        replacement="if append.previous_index <= log.last_index:",
        world="quarrel",
        dies=("safety raft.log_matching",),
        worlds=first(4, 20),
    ),
    Canary(
        name="commits-an-old-term-by-counting",
        breaks="An entry of an earlier term is committed once a majority has it (figure 8).",
        module="microos.raft.replication",
        text="return index if self._log.term(index) == self._term else None",
        replacement="return index",
        world="figure_8",
        dies=("safety raft.leader_completeness", "safety raft.state_machine_safety"),
        worlds=first(1, 20),
    ),
    Canary(
        name="reads-without-a-round",
        breaks="A leader answers reads without asking whether it still leads.",
        module="microos.raft.reads",
        text="reached = joint_reached(configuration, self._echoed)",
        replacement="reached = self.round",
        world="slumber",
        dies=("linearizability real_time",),
        worlds=first(0, 10),
    ),
    Canary(
        name="applies-a-retried-command-again",
        breaks="No result is kept, so a command that comes twice is done twice.",
        module="microos.raft.composite",
        text="return self._sessions.keep(command, self._perform(command, stamp, events))",
        replacement="return self._perform(command, stamp, events)",
        world="quarrel",
        dies=("safety exactly_once",),
        worlds=first(4, 20),
    ),
    Canary(
        name="reuses-a-fencing-token",
        breaks="A token is made of the term: all grants of one leader share it.",
        module="microos.sync.machine",
        text="FencingToken(packed(stamp.epoch, stamp.index))",
        replacement="FencingToken(packed(stamp.epoch, stamp.term))",
        world="swarm",
        dies=("safety sync.token",),
        worlds=first(0, 10),
    ),
    Canary(
        name="owner-outlives-its-lease",
        breaks="A body is not cancelled before the lock can be given away.",
        module="microos.node.sessions",
        text="return sent + ttl * (1.0 - self._settings.clock_drift_max) - MARGIN",
        replacement="return sent + ttl * 2.0",
        world="parted",
        dies=("safety sync.lost_after_grant",),
        worlds=first(1, 20),
    ),
    Canary(
        name="deposed-leader-keeps-sessions-alive",
        breaks="A keep-alive is acknowledged without a round that shows who leads.",
        module="microos.node.sessions",
        text="        if not await self._confirm(term):\n            return\n        known =",
        replacement="        known =",
        world="usurped",
        dies=("safety sync.lost_after_grant",),
        worlds=first(7, 30),
    ),
    Canary(
        name="reports-what-was-handed-out-during-the-write",
        breaks="A race across an await: what arrived while the disk wrote is taken for written.",
        module="microos.node.consensus",
        text="for batch in batches:\n                self.post(Persisted(batch.token))",
        replacement=(
            "for batch in (*batches, *self._unwritten):\n"
            "                self.post(Persisted(batch.token))"
        ),
        world="restless",
        dies=("safety storage.entry_lost", "safety storage.vote_lost"),
        worlds=first(0, 10),
    ),
    Canary(
        name="settles-before-copies-are-whole",
        breaks="A slot settles though its new owners have not reported that they have everything.",
        module="microos.ring.planner",
        text="if have < len(alive) or have < wanted(len(row)):",
        replacement="if False:",
        world="moving",
        dies=KV_BREACH,
        worlds=first(10, 30),
    ),
    Canary(
        name="fills-a-copy-from-one-source",
        breaks="A copy is whole with the entries of one source instead of M.",
        module="microos.ring.upkeep",
        text="needed = min(sources(len(current)), len(living))",
        replacement="needed = 1",
        world="bridged",
        dies=KV_BREACH,
        worlds=first(0, 30),
    ),
    Canary(
        name="stays-on-the-old-chain",
        breaks="An operation is not repeated where the slot has changed.",
        module="microos.ring.operation",
        text="elif code & Code.NEWER_SLOT:",
        replacement="elif code & 1024:",
        world="moving",
        dies=KV_BREACH,
        worlds=first(1, 30),
    ),
    Canary(
        name="does-not-write-back",
        breaks="A read is answered though what it has seen is not at a quorum.",
        module="microos.ring.get",
        text="if newest is None or self.one or not behind:",
        replacement="if True:",
        world="moving",
        dies=KV_BREACH,
        worlds=first(0, 30),
    ),
    Canary(
        name="keeps-its-version-below-a-newer-one",
        breaks="A write that meets a newer version is acknowledged beneath it.",
        module="microos.ring.put",
        text="if self._newest > version_of(self._entry) and not self._is_above:",
        replacement="if False:",
        world="moving",
        dies=KV_BREACH,
        worlds=first(0, 30),
    ),
    Canary(
        name="accepts-below-a-promise",
        breaks="An owner keeps an atomic write though it has promised a newer ballot.",
        module="microos.ring.replica",
        text=(
            "        if promised > ballot:\n"
            "            return self._answer(Code.REFUSED, now, promised=promised)\n"
            "        kept"
        ),
        replacement="        kept",
        world="contended",
        dies=KV_BREACH,
        worlds=first(1, 30),
    ),
    Canary(
        name="renews-a-value-under-another-version",
        breaks="What is brought to a quorum by a ballot is known by that ballot.",
        module="microos.ring.entry",
        text="else entry[:VERSION] + entry[HEAD:]\n    return ballot",
        replacement="else ballot + entry[HEAD:]\n    return ballot",
        world="moving",
        dies=("safety kv.version", "safety kv.provenance"),
        worlds=first(0, 30),
    ),
    Canary(
        name="takes-another-version-for-a-confirmation",
        breaks="A read ends with the own copy whatever another owner has.",
        module="microos.ring.short",
        text="            if head == head_of(entry):",
        replacement="            if head:",
        world="moving",
        dies=KV_BREACH,
        worlds=first(0, 30),
    ),
    Canary(
        name="is-content-with-one-acknowledgement",
        breaks="A write goes the short way with one acknowledgement though two are wanted.",
        module="microos.ring.short",
        text="                write.needed -= 1\n",
        replacement="                write.needed = 0\n",
        world="moving",
        dies=KV_BREACH,
        worlds=first(0, 30),
    ),
    Canary(
        name="reads-current-alone",
        breaks="A read of a slot in change asks its present owners only.",
        module="microos.ring.get",
        text="        up = self._vote(Votes(chain, limits.RING_REPLICAS))\n",
        replacement="        up = self._vote(Votes(chain[:1], limits.RING_REPLICAS))\n",
        world="emptied",
        dies=KV_BREACH,
        worlds=first(0, 30),
    ),
    Canary(
        name="delete-leaves-no-trace",
        breaks="A tombstone is forgotten as soon as it has taken the value away.",
        module="microos.ring.store",
        text="            self._forget(slot, name, kept)\n        entries[name] = entry\n",
        replacement=(
            "            self._forget(slot, name, kept)\n"
            "            if is_tombstone(entry):\n"
            "                del entries[name]\n"
            "                return True\n"
            "        entries[name] = entry\n"
        ),
        world="moving",
        dies=KV_BREACH,
        worlds=first(0, 10),
    ),
    Canary(
        name="answers-for-an-earlier-boot",
        breaks="A process answers what its predecessor was asked, with empty copies.",
        module="microos.ring.replica",
        text="if request.boot != self.me.boot:",
        replacement="if False:",
        world="moving",
        dies=("safety kv.boot", *KV_BREACH),
        worlds=first(8, 30),
    ),
    Canary(
        name="forgets-a-delete-that-an-owner-has-not-heard-of",
        breaks="Old tombstones are purged though not every owner has confirmed them.",
        module="microos.ring.passes",
        text="self._failed |= not isinstance(answer, Answer) or answer.code != 0",
        replacement="self._failed |= False",
        world="purged",
        dies=KV_BREACH,
        worlds=first(5, 30),
    ),
    Canary(
        name="uses-an-id-again",
        breaks="A call gets the lowest free id, so a late answer to another one fits it.",
        module="microos.rpc.core",
        text="        id = next(self._ids)\n",
        replacement=("        id = 1\n        while id in pending:\n            id += 1\n"),
        world="hasty",
        dies=("safety rpc.answer", "safety rpc.protocol"),
        worlds=first(0, 10),
    ),
    Canary(
        name="does-not-refute",
        breaks="A live node that is held to be suspect or dead does not object.",
        module="microos.gossip.news",
        text="        if incarnation >= self._desk.me.incarnation:\n            self._desk.renew(",
        replacement="        if False:\n            self._desk.renew(",
        world="dozed",
        dies=("liveness members",),
        worlds=first(0, 20),
    ),
    Canary(
        name="forgets-the-dead-at-once",
        breaks="No tombstone is kept.",
        module="microos.gossip.news",
        text='self._desk.timers.set(("forget", entry.node), entry.since + lifetime)',
        replacement='self._desk.timers.set(("forget", entry.node), now)',
        world="nodes",
        dies=("safety gossip.forgotten",),
        worlds=first(0, 30),
    ),
    Canary(
        name="probes-in-the-order-of-a-set",
        breaks="Who is probed next depends on how strings are hashed in this process.",
        module="microos.gossip.probe",
        text="self._rotation = nodes\n",
        replacement="self._rotation = [*{*nodes}]\n",
        world="nodes",
        dies=("determinism trace",),
        worlds=first(0, 6),
    ),
)

BY_NAME = {canary.name: canary for canary in CANARIES}


class Mutation(importlib.abc.MetaPathFinder):
    """Finds one module as usual, and changes its source on the way in."""

    def __init__(self, canary: Canary) -> None:
        self._canary = canary

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._canary.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None and spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin, self._canary)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the changed text; what was compiled before is not looked at."""

    def __init__(self, fullname: str, path: str, canary: Canary) -> None:
        super().__init__(fullname, path)
        self._canary = canary

    def get_code(self, fullname: str) -> CodeType:
        source = Path(self.path).read_text(encoding="utf-8")
        return compile(mutated(source, self._canary), self.path, "exec", dont_inherit=True)


def mutated(source: str, canary: Canary) -> str:
    """Return the source of the canary's module with its one place changed.

    Raises:
        ValueError: The text does not stand there exactly once: the canary has rotted.
    """
    count = source.count(canary.text)
    if count != 1:
        raise ValueError(
            f"expected the text of canary {canary.name} once in {canary.module}, found it "
            f"{count} times: bring the canary up to date"
        )
    return source.replace(canary.text, canary.replacement)


def run_worlds(canary: Canary, numbers: Iterable[int], arguments: Sequence[str]) -> dict[str, Any]:
    """Run worlds until one fails; return the last fate as a dict of plain values."""
    # Not at the top: the hook comes first.
    worlds = importlib.import_module("tests.sim.canary_worlds")
    found: dict[str, Any] = {}
    for number in numbers:
        fate = getattr(worlds, canary.world)(number)
        cause, detail = fate.cause, fate.detail
        if not cause and "determinism trace" in canary.dies and "--once" not in arguments:
            other = in_fresh_process(canary, *arguments, "--once", "--world", str(number), salt=7)
            if other["trace"] != fate.trace:
                cause, detail = "determinism trace", f"{fate.trace} and {other['trace']}"
        found = {"number": number, "cause": cause, "detail": detail, "trace": fate.trace}
        if cause:
            break
    return found


def in_fresh_process(canary: Canary, *arguments: str, salt: int = 1) -> dict[str, Any]:
    """Run this module's command for a canary; return what it printed.

    Args:
        salt: What strings are hashed with.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim.canaries", canary.name, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(salt)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{canary.name} {' '.join(arguments)} ended with {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.canaries")
    parser.add_argument("name", choices=BY_NAME)
    parser.add_argument("--sound", action="store_true", help="run the code as it is")
    parser.add_argument("--world", type=int, help="run this world alone")
    parser.add_argument("--once", action="store_true", help="do not compare two processes")
    options = parser.parse_args()
    canary = BY_NAME[options.name]
    if not options.sound:
        sys.meta_path.insert(0, Mutation(canary))
    numbers = canary.worlds if options.world is None else (options.world,)
    flags = [flag for flag, on in (("--sound", options.sound), ("--once", options.once)) if on]
    print(json.dumps(run_worlds(canary, numbers, flags)))


if __name__ == "__main__":
    main()
