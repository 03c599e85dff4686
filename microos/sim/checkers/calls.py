"""What must hold of calls between processes (rpc-router.md 6), as their users see it.

| invariant | how it is seen |
|---|---|
| rpc.answer | an answer says which call it answers, and who answers: this call, that node |
| rpc.once | no call is begun by a handler twice |
| rpc.no_effect | a call that failed as unavailable was never begun |
| rpc.deadline | each call of a process that runs ends by its deadline |
| rpc.service | in the quiet tail calls succeed |
"""

from __future__ import annotations

from collections.abc import Mapping

from microos.sim.customers import PATIENT, CallOperation, answer_of
from microos.sim.world import SECOND, World


class CallChecker:
    """The checks of one world's calls."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.history: list[CallOperation] = []

    def _fail(self, invariant: str, detail: str, kind: str = "safety") -> None:
        self._world.fail(kind, f"rpc.{invariant}", detail)

    def handled(self, number: int, callee: str) -> None:
        """A handler has begun a call."""
        operation = self.history[number]
        operation.begun += 1
        if operation.callee != callee:  # Both are empty where a router has picked.
            self._fail("answer", f"{operation} came to {callee}")
        if operation.begun > 1:
            self._fail("once", f"{operation} was begun again")
        if operation.outcome == "unavailable":
            self._fail("no_effect", f"{operation} was begun after all")

    def ended(self, operation: CallOperation, answer: bytes | None) -> None:
        if operation.outcome == "unavailable" and operation.begun:
            self._fail("no_effect", f"{operation} was begun")
        if answer is not None:
            number, callee, _ = answer_of(answer)
            if (number, callee) != (operation.number, operation.callee):
                self._fail("answer", f"{operation} was answered with that of {number} by {callee}")

    def final(self, since_ns: int, running: Mapping[str, float]) -> None:
        """Judge what is left after the quiet tail.

        Args:
            since_ns: From when on calls had to succeed.
            running: Processes (node and boot) and since when nothing held them up [ns].
        """
        for operation in self.history:
            self._overdue(operation, running)
            patient = operation.timeout >= PATIENT and operation.begun_ns >= since_ns
            if patient and operation.outcome == "unavailable":
                self._fail("service", f"{operation}", "liveness")

    def _overdue(self, operation: CallOperation, running: Mapping[str, float]) -> None:
        since = running.get(operation.caller)
        if operation.ended_ns is None and not operation.cancelled and since is not None:
            begun = max(float(operation.begun_ns), since)
            if begun + (operation.timeout * 1.2 + 0.5) * SECOND < self._world.now:
                self._fail("deadline", f"{operation} has not ended", "liveness")
