"""Mutants that the simulated world has to find: proof that its checkers can fail.

A checker that never fails may be blind. So each canary breaks one rule of the production
code and names the world that has to notice, and by which invariant:

    text ──(once in the module)──▶ replacement ──▶ a fresh process ──▶ worlds ──▶ dies by ...
                                   nothing changed ──▶ a fresh process ──▶ the same world passes

Production code carries no switch. The source of one module is changed on its way into the
interpreter; the text must stand in it exactly once, so a canary cannot rot unnoticed.

    python -m tests.sim.canaries NAME            run the worlds of a canary until one kills it
    python -m tests.sim.canaries NAME --sound N  run world N on the code as it is

Seeds die when code draws differently, so a canary names many worlds: the first is the one
that killed it last time, and the next ones are there for the day it no longer does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
