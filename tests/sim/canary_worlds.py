"""The worlds in which canaries die: each is a number's world of one layer, kept small.

Imported only after the hook of `canaries.py` is in place, since what is imported here is
what is mutated.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace

import msgspec

from microos.sim.cores import CoresWorld
from microos.sim.faults import LEADER, Fault
from microos.sim.network import Weather
from microos.sim.nodes import NodesWorld
from microos.sim.swarm import Config, draw
from microos.sim.world import MILLISECOND, SECOND


class Fate(msgspec.Struct, frozen=True):
    """What came of one world."""

    number: int
    cause: str = ""
    """Kind and invariant of what failed; empty: the world passed."""
    detail: str = ""


def _cores(config: Config, plan: list[Fault]) -> Fate:
    world = CoresWorld(config, plan)
    world.run()
    failure = world.world.failure
    if failure is None:
        return Fate(config.seed)
    return Fate(config.seed, f"{failure.kind} {failure.invariant}", failure.detail)


def _nodes(config: Config, plan: list[Fault]) -> Fate:
    world = NodesWorld(config, plan)
    world.run()
    failure = world.world.failure
    if failure is None:
        return Fate(config.seed)
    return Fate(config.seed, f"{failure.kind} {failure.invariant}", failure.detail)


def swarm(number: int) -> Fate:
    """A seed of layer `cores`, as the lottery draws it."""
    return _cores(*draw(number, 3 + number % 2 * 2, 20, "cores"))


def nodes(number: int) -> Fate:
    """A seed of layer `node`, as the lottery draws it."""
    return _nodes(*draw(number, 3, 16, "node"))
