"""The pick: what is learnt from answers, who is preferred, who is passed over."""

from __future__ import annotations

import math
import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microos.router.breaker import NO_PENALTIES
from microos.router.pick import (
    CANDIDATES_MAX,
    DRAIN_WAIT,
    RECENT,
    SUBSET,
    SUBSET_ABOVE,
    Candidate,
    Pace,
    Pool,
)
from microos.rpc.messages import Load


def name(number: int) -> str:
    return f"{number:032x}"


class Seen:
    """A pool of n instances, and shorthand for what happens in it."""

    def __init__(self, count: int, *, callers: int = 1, seed: int = 0, caller: str = "me") -> None:
        self.pool = Pool(caller, random.Random(seed))
        self.pool.callers = callers
        self.pool.sync([(name(n), False) for n in range(count)])
        self.pace = Pace()
        self.now = 100.0

    def __getitem__(self, number: int) -> Candidate:
        return next(c for c in self.pool.everyone if c.node == name(number))

    def hear(self, number: int, *, queue: int = 0, service: float = 0.01, cap: int = 1) -> None:
        load = Load(queue, int(service * 1e6), cap)
        self.pool.answered(self[number], self.pace, load, self.now)

    def send(self, number: int) -> int:
        return self.pool.sent(self[number], self.pace, self.now)

    def pick(self, penalties: dict[str, float] | None = None) -> int:
        everyone = self.pool.everyone
        found = self.pool.least_load(everyone, self.now, penalties or NO_PENALTIES)
        self.pool.check()
        return int(found.node, 16)

    def picks(self, times: int = 400) -> Counter[int]:
        return Counter(self.pick() for _ in range(times))


def all_heard(count: int, *, callers: int = 1) -> Seen:
    seen = Seen(count, callers=callers)
    for number in range(count):
        seen.hear(number)
    return seen


# What is learnt.


def test_reports_are_smoothed_by_half() -> None:
    seen = Seen(3)

    seen.hear(0, queue=8)
    seen.hear(0, queue=8)

    assert seen[0].queue == 6.0


def test_slowness_is_the_ratio_to_the_mean_of_the_endpoint() -> None:
    seen = all_heard(3)

    seen.hear(0, service=0.03)

    mean = 0.01 + 0.02 * (0.03 - 0.01)
    assert seen.pace.mean == pytest.approx(mean)
    assert seen[0].slowness == pytest.approx(1.0 + 0.5 * (0.03 / mean - 1.0))


def test_slowness_ages_before_it_is_learnt_anew() -> None:
    seen = all_heard(3)
    seen[0].slowness, seen[0].slowness_at = 9.0, seen.now - 2.0

    seen.hear(0)

    aged = 1.0 + 8.0 * math.exp(-1.0)
    assert seen[0].slowness == pytest.approx(aged + 0.5 * (1.0 - aged))


def test_a_failure_teaches_the_queue_but_no_speed() -> None:
    seen = all_heard(3)
    seen[0].bad_until = seen.now + 1.0

    seen.pool.heard(seen[0], Load(4, 1), seen.now)

    assert seen[0].queue == 2.0
    assert seen[0].slowness == 1.0
    assert seen.pace.mean == pytest.approx(0.01)
    assert seen[0].bad_until == seen.now + 1.0


@pytest.mark.parametrize(
    "load", [Load(-5, -5, -5, 0), Load(0, 0, 0, 0), Load(2**63, 2**63, 2**63, 0)]
)
def test_a_senseless_report_is_brought_into_range(load: Load) -> None:
    seen = all_heard(3)

    for _ in range(50):
        seen.pool.answered(seen[0], seen.pace, load, seen.now)

    assert seen.pick() in range(3)
    assert seen.pace.mean > 0.0


def test_an_answer_without_a_report_still_ends_the_suspicion() -> None:
    seen = all_heard(3)
    seen.pool.failed(seen[0], seen.now)

    seen.pool.answered(seen[0], seen.pace, None, seen.now)

    assert not seen.pool.suspects(seen[0], seen.now)
    assert seen[0].fails == 0


# Who is preferred.


def test_the_shorter_queue_is_preferred() -> None:
    seen = all_heard(3)
    for number, queue in enumerate((6, 2, 6)):
        seen.hear(number, queue=queue)

    assert seen.picks() == {1: 400}


def test_the_quicker_instance_is_preferred() -> None:
    seen = Seen(3)
    for _ in range(20):
        for number, service in enumerate((0.02, 0.02, 0.01)):
            seen.hear(number, queue=1, service=service)

    assert seen.picks() == {2: 400}


def test_room_for_more_at_once_is_worth_more_than_a_short_queue() -> None:
    seen = Seen(3)
    for _ in range(20):
        for number, cap in enumerate((1, 8, 1)):
            seen.hear(number, queue=4, cap=cap)

    assert seen.picks() == {1: 400}


def test_own_calls_count_for_those_of_the_other_callers_too() -> None:
    alone, among_many = all_heard(3, callers=1), all_heard(3, callers=20)
    for seen in (alone, among_many):
        seen.hear(0, queue=0)
        seen.hear(1, queue=8)
        seen.hear(2, queue=8)
        seen.send(0)

    assert alone.pick() == 0
    assert among_many.pick() in (1, 2)


def test_a_queue_weighs_by_its_square_and_slowness_as_it_is() -> None:
    seen = all_heard(3)
    seen[0].queue = 1.0
    for number in (1, 2):
        seen[number].slowness = 3.0

    assert 0 not in seen.picks()
    for number in (1, 2):
        seen[number].slowness = 5.0
    assert seen.picks() == {0: 400}


def test_old_reports_give_way_to_the_mean_of_all() -> None:
    seen = all_heard(3)
    for number, queue in enumerate((9, 0, 0)):
        seen.hear(number, queue=queue)
    seen.now += 20.0

    assert set(seen.picks()) == {0, 1, 2}


def test_who_was_slow_is_tried_again() -> None:
    seen = all_heard(3)
    for _ in range(20):
        seen.hear(0, service=0.1)
    assert 0 not in seen.picks()

    seen.now += 15.0

    assert seen.picks()[0] > 40


def test_a_penalty_makes_an_instance_worse_by_its_factor() -> None:
    seen = all_heard(3)

    assert all(seen.pick({name(0): 10.0}) != 0 for _ in range(200))
    assert {seen.pick({name(0): 1.01}) for _ in range(200)} == {0, 1, 2}
    assert all(Seen(2).pick({name(0): 1.01}) == 1 for _ in range(20))


@pytest.mark.parametrize("count", [2, 5])
def test_while_nothing_is_known_the_fewest_own_calls_decide(count: int) -> None:
    seen = Seen(count)
    for number in range(count - 1):
        seen.send(number)

    assert seen.picks() == {count - 1: 400}


def test_ties_are_broken_by_chance() -> None:
    assert min(Seen(5).picks().values()) > 40
    assert min(all_heard(5).picks().values()) > 40


def test_one_is_picked_whatever_is_said_of_it() -> None:
    seen = Seen(1)
    seen.pool.failed(seen[0], seen.now)
    seen.send(0)

    assert seen.pick() == 0


# Who is passed over.


@pytest.mark.parametrize("count", [2, 5])
def test_one_failure_makes_an_instance_suspect_for_a_second(count: int) -> None:
    seen = all_heard(count)

    seen.pool.failed(seen[0], seen.now)

    assert 0 not in seen.picks()
    seen.now += 1.5
    assert 0 in seen.picks()


def test_the_suspicion_grows_while_no_answer_comes() -> None:
    seen = all_heard(3)
    waits = []
    for _ in range(8):
        seen.pool.failed(seen[0], seen.now)
        seen.pool.failed(seen[0], seen.now)
        waits.append(seen[0].bad_until - seen.now)
        seen.now = seen[0].bad_until

    for fails, wait in enumerate(waits):
        usual = min(30.0, 2.0**fails)
        assert 0.5 * usual - 1e-9 <= wait <= 1.5 * usual + 1e-9


def test_half_a_failure_is_suspected_half_as_long() -> None:
    seen = all_heard(3)

    seen.pool.failed(seen[0], seen.now, 0.5)

    assert 0.25 <= seen[0].bad_until - seen.now <= 0.75


@pytest.mark.parametrize("count", [2, 5])
def test_suspects_are_used_only_when_all_are(count: int) -> None:
    seen = all_heard(count)
    seen.pool.failed(seen[0], seen.now)
    for number in range(1, count):
        for _ in range(20):
            seen.hear(number, queue=1000)
        for _ in range(100):
            seen.send(number)

    assert seen.pick() != 0
    for number in range(1, count):
        seen.pool.failed(seen[number], seen.now)
    assert seen.pick() == 0


@pytest.mark.parametrize("count", [2, 5])
def test_whom_gossip_suspects_comes_last_of_all(count: int) -> None:
    seen = all_heard(count)
    seen.pool.sync([(name(n), n == 0) for n in range(count)])
    for number in range(1, count):
        seen.pool.failed(seen[number], seen.now)

    assert 0 not in seen.picks()


@pytest.mark.parametrize("count", [2, 5])
def test_an_instance_that_does_not_answer_is_suspect_before_its_deadline(count: int) -> None:
    seen = all_heard(count)
    number = seen.send(0)
    seen.now += 0.19
    assert not seen.pool.suspects(seen[0], seen.now)

    seen.now += 0.02

    assert 0 not in seen.picks()
    assert seen[0].fails == 1
    seen.pool.ended(seen[0], number)
    seen.pool.check()


def test_a_long_queue_explains_a_late_answer() -> None:
    seen = all_heard(3)
    for _ in range(20):
        seen.hear(0, queue=10)
    seen.send(0)

    seen.now += 1.0

    assert not seen.pool.suspects(seen[0], seen.now)


def test_an_instance_that_drains_is_passed_over_until_it_says_otherwise() -> None:
    seen = all_heard(3)
    seen.pool.answered(seen[0], seen.pace, Load(0, 10_000, 1, 1), seen.now)

    seen.now += DRAIN_WAIT - 0.1
    assert 0 not in seen.picks()

    seen.hear(0)
    assert seen[0].bad_until == -math.inf


# Very many.


def test_of_many_candidates_those_heard_of_last_and_strangers_are_looked_at() -> None:
    seen = Seen(100)
    for number in range(100):
        seen.hear(number, queue=9)
    for number in range(50, 50 + RECENT):
        for _ in range(20):
            seen.hear(number, queue=0)

    assert set(seen.picks()) <= set(range(50, 50 + RECENT))
    for number in range(50, 50 + RECENT):
        for _ in range(20):
            seen.hear(number, queue=500)
    strangers = [number for number in seen.picks().elements() if number not in range(50, 66)]
    assert len(strangers) > 350
    assert len({*strangers}) > 50


def test_a_filter_holds_among_many_too() -> None:
    seen = all_heard(100)
    some = [c for c in seen.pool.everyone if int(c.node, 16) % 2]
    assert len(some) > CANDIDATES_MAX

    found = {seen.pool.least_load(some, seen.now, NO_PENALTIES).node for _ in range(400)}

    assert found <= {c.node for c in some}


def test_of_very_many_instances_each_caller_uses_its_own_few() -> None:
    subsets = []
    for caller in range(20):
        seen = Seen(SUBSET_ABOVE + 1, caller=name(caller))
        assert len(seen.pool.everyone) == SUBSET
        subsets.append({c.node for c in seen.pool.everyone})

    used = Counter(node for subset in subsets for node in subset)
    assert len(used) > 0.98 * SUBSET_ABOVE
    assert len(Seen(SUBSET_ABOVE).pool.everyone) == SUBSET_ABOVE


def test_who_is_gone_is_forgotten_and_who_stays_is_not() -> None:
    seen = all_heard(3)
    gone = seen[0]
    number = seen.send(0)

    assert seen.pool.sync([(name(1), False), (name(3), False)]) == [name(0), name(2)]

    seen.pool.answered(gone, seen.pace, Load(1, 1000), seen.now)
    seen.pool.ended(gone, number)
    seen.pool.check()
    assert seen[1].heard_at == seen.now
    assert [c.node for c in seen.pool.everyone] == [name(1), name(3)]


# The other picks.


def test_round_robin_takes_each_in_turn() -> None:
    seen = Seen(3)

    def turn(*numbers: int) -> int:
        candidates = [seen[n] for n in numbers]
        return int(seen.pool.round_robin(candidates, seen.now, NO_PENALTIES).node, 16)

    assert [turn(0, 1, 2) for _ in range(5)] == [0, 1, 2, 0, 1]
    assert [turn(0, 1) for _ in range(3)] == [0, 1, 0]
    seen.pool.failed(seen[1], seen.now)
    assert [turn(0, 1, 2) for _ in range(3)] == [2, 0, 2]


def test_at_random_everybody_is_as_likely() -> None:
    seen = Seen(4)

    found = Counter(
        seen.pool.at_random(seen.pool.everyone, seen.now, NO_PENALTIES).node for _ in range(4000)
    )

    assert all(900 < count < 1100 for count in found.values())


def test_a_key_stays_where_it_is_when_others_come_and_go() -> None:
    ten, nine = Seen(10), Seen(9)

    def places(seen: Seen) -> dict[str, str]:
        everyone = seen.pool.everyone
        keys = (f"key-{n}" for n in range(1000))
        return {key: seen.pool.by_key(everyone, seen.now, key).node for key in keys}

    before, after = places(ten), places(nine)

    moved = [key for key in before if before[key] != after[key]]
    assert all(before[key] == name(9) for key in moved)
    assert 50 < len(moved) < 150


def test_a_key_yields_to_suspicion_and_comes_back() -> None:
    seen = Seen(5)
    home = seen.pool.by_key(seen.pool.everyone, seen.now, "k")

    seen.pool.failed(home, seen.now)
    assert seen.pool.by_key(seen.pool.everyone, seen.now, "k") is not home
    seen.now += 1.5

    assert seen.pool.by_key(seen.pool.everyone, seen.now, "k") is home


# Any schedule.

STEP = st.tuples(
    st.integers(0, 39),
    st.sampled_from(["send", "end", "answer", "fail", "drain", "wait", "sync", "pick"]),
    st.integers(0, 2000),
)


@given(st.lists(STEP, max_size=150), st.integers(1, 40), st.integers(1, 100))
def test_whatever_happens_the_best_of_the_candidates_is_picked(
    steps: list[tuple[int, str, int]], count: int, callers: int
) -> None:
    seen = Seen(count, callers=callers)
    flying: list[tuple[Candidate, int]] = []
    for number, step, size in steps:
        everyone = seen.pool.everyone
        candidate = everyone[number % len(everyone)]
        if step == "send":
            flying.append((candidate, seen.pool.sent(candidate, seen.pace, seen.now)))
        elif step == "end" and flying:
            seen.pool.ended(*flying.pop(size % len(flying)))
        elif step == "answer":
            load = Load(size % 20, size * 50, 1 + number % 4, size % 7 == 0)
            seen.pool.answered(candidate, seen.pace, load, seen.now)
        elif step == "fail":
            seen.pool.failed(candidate, seen.now)
        elif step == "drain":
            seen.pool.drains(candidate, seen.now)
        elif step == "wait":
            seen.now += size / 500
        elif step == "sync":
            seen.pool.sync([(name(n), n % 5 == 4) for n in range(number % 40 + 1)])
        seen.pool.check()

        everyone = seen.pool.everyone
        for found in (
            seen.pool.least_load(everyone, seen.now, NO_PENALTIES),
            seen.pool.round_robin(everyone, seen.now, NO_PENALTIES),
            seen.pool.at_random(everyone, seen.now, NO_PENALTIES),
            seen.pool.by_key(everyone, seen.now, "k"),
        ):
            assert found in everyone
            if len(everyone) <= CANDIDATES_MAX:
                well = [c for c in everyone if not c.is_last and seen.now >= c.bad_until]
                assert not well or found in well


@pytest.mark.bench
@pytest.mark.criterion("ROUT-1")
def test_picking_one_of_fifty_takes_microseconds() -> None:
    seen = Seen(50, callers=10)
    for number in range(50):
        seen.hear(number, queue=number % 5, service=0.001 * (1 + number % 7))
    everyone = seen.pool.everyone

    best = math.inf
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(100):
            seen.pool.least_load(everyone, seen.now, NO_PENALTIES)
        best = min(best, (time.perf_counter() - begun) / 100)

    print(f"router pick of 50 {best * 1e6:.1f} us of 20 us")
    assert best < 200e-6
