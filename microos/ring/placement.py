"""Which members own which slots: a pure function of the member list, the same on every node.

Weighted rendezvous hashing with a load cap of 10 %. Each slot ranks the members by
score and takes the best that its zone rule and the caps allow:

    scores of slot 7    e .99   b .91   a .60   d .33   c .05
    caps                  full                                   e holds its share already
    row                         b       a       d

Slots are filled rank by rank (all first owners, then all second ones), so that first
owners are spread as evenly as copies. Whoever comes or goes takes or leaves little more
than its share: at most 1.3 times the ideal up to 30 nodes. Zones give way after the
cap, never before it: the other order left rows in too few zones.

All arithmetic is on integers and exact fractions: with floats two C libraries may
round differently, and then two nodes would own different slots.

Digest: xxh3-64 of SEED (4 bytes little-endian), slots (2), replicas (1), cap in per
cent (1), then per member in order of node id: its id, weight (1), size of its zone's
name (1), the name.

Source: Thaler, Ravishankar, "Using Name-Based Mappings to Increase Hit Rates" (1998);
Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2018); kv.md 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from math import ceil
from typing import TypeVar

from microos import limits
from microos.hashing import xxh3
from microos.ring.ring import SLOTS, Member
from microos.types import NodeId

SEED = 0x6D6F7331
"""The version of this function: another seed is another placement."""

CAP_PERCENT = 110
_CAP = Fraction(CAP_PERCENT, 100)

K = TypeVar("K")

Table = tuple[tuple[int, ...], ...]
"""Per slot the indexes of its owners among the members by node id, best first."""

_NAMES = tuple(slot.to_bytes(4, "little") for slot in range(SLOTS))
_ORDER = tuple(sorted(range(SLOTS), key=lambda slot: (xxh3(_NAMES[slot], SEED), slot)))
"""In which order slots are visited."""


class Scores:
    """The scores of members by slot, kept from one table to the next: they never change."""

    def __init__(self) -> None:
        self._kept: dict[tuple[NodeId, int], tuple[int, ...]] = {}

    def of(self, members: Sequence[Member]) -> list[tuple[int, ...]]:
        """Return each member's scores, shape (members, 1024); forget those of all others.

        Cost:
            0.1 ms × weight for each member that is new.
        """
        kept = {}
        for member in members:
            key = (member.node, member.weight)
            kept[key] = self._kept.get(key) or scores(*key)
        self._kept = kept
        return list(kept.values())


def scores(node: NodeId, weight: int) -> tuple[int, ...]:
    """Return a member's score in each slot, shape (1024,).

    The maximum of `weight` uniform draws is weighted rendezvous exactly, without logarithms.
    """
    seeds = [xxh3(node.encode(), SEED + draw) for draw in range(weight)]
    return tuple(max([xxh3(name, seed) for seed in seeds]) for name in _NAMES)


def table(members: Iterable[Member], replicas: int, kept: Scores | None = None) -> Table:
    """Return who owns each slot, best first.

    Args:
        members: Each node once, in any order. Only node, weight and zone count.
        replicas: Owners wanted per slot. 1..`limits.RING_REPLICAS`.
        kept: Scores of earlier tables; changes the cost, never the answer.

    Returns:
        Shape (1024, min(replicas, members)): indexes among the members by node id.

    Cost:
        O(slots × members × log members); with kept scores 3..8 ms for 10 members,
        12..18 for 50.
    """
    ordered = sorted(members, key=lambda member: member.node)
    replicas = min(replicas, len(ordered))
    if not replicas:
        return ((),) * SLOTS
    score = (kept or Scores()).of(ordered)
    quota = quotas(ordered, replicas)
    copies_cap = [ceil(part * _CAP) for part in quota]
    primaries_cap = [ceil(part / replicas * _CAP) for part in quota]
    zones = list(dict.fromkeys(member.zone for member in ordered))
    zone = [zones.index(member.zone) for member in ordered]
    per_zone = 1 if len(zones) >= replicas else ceil(Fraction(replicas, len(zones)))
    copies = [0] * len(ordered)
    rows: list[list[int]] = [[] for _ in range(SLOTS)]

    # The sort is stable and members are by node id, which so breaks ties.
    of_slot = zip(*score, strict=True)
    candidates = [sorted(range(len(ordered)), key=lambda i: -slot[i]) for slot in of_slot]

    for rank in range(replicas):
        # Before rank 1 a node's copies are its primaries.
        cap = [min(caps) for caps in zip(copies_cap, primaries_cap, strict=True)]
        cap = copies_cap if rank else cap
        for slot in _ORDER:
            row = rows[slot]
            in_zone = [zone[i] for i in row]
            free = [i for i in candidates[slot] if i not in row]
            spread = [i for i in free if in_zone.count(zone[i]) < per_zone]
            chosen = next((i for i in spread if copies[i] < cap[i]), None)
            if chosen is None:
                chosen = (spread or free)[0]
            row.append(chosen)
            copies[chosen] += 1
    return tuple(map(tuple, rows))


def quotas(members: Sequence[Member], replicas: int) -> list[Fraction]:
    """Return how many copies each member should hold: first among zones, then within each.

    Args:
        members: At least `replicas`.
        replicas: Copies of each slot, at least 1.
    """
    zones: dict[str, list[int]] = {}
    for index, member in enumerate(members):
        zones.setdefault(member.zone, []).append(index)
    weights = {zone: sum(members[i].weight for i in inside) for zone, inside in zones.items()}
    most = 1 if len(zones) >= replicas and len(zones) > 1 else -(-replicas // len(zones))
    of_zone = share(weights, Fraction(SLOTS * replicas), Fraction(SLOTS * most))
    quota = [Fraction(0)] * len(members)
    for zone, inside in zones.items():
        parts = share({i: members[i].weight for i in inside}, of_zone[zone], Fraction(SLOTS))
        for index, part in parts.items():
            quota[index] = part
    return quota


def share(weights: Mapping[K, int], total: Fraction, ceiling: Fraction) -> dict[K, Fraction]:
    """Divide `total` by weight with nobody above `ceiling`; what is cut off goes to the others."""
    parts: dict[K, Fraction] = {}
    open_weights = dict(weights)
    while open_weights:
        unit = total / sum(open_weights.values())
        full = [key for key, weight in open_weights.items() if unit * weight > ceiling]
        if not full:
            return {**parts, **{key: unit * weight for key, weight in open_weights.items()}}
        for key in full:
            del open_weights[key]
            parts[key] = ceiling
            total -= ceiling
    return parts


def digest(members: Iterable[Member], replicas: int) -> int:
    """Return a number equal exactly where the table's function and arguments are."""
    parts = [
        SEED.to_bytes(4, "little"),
        SLOTS.to_bytes(2, "little"),
        bytes((replicas, CAP_PERCENT - 100)),
    ]
    for member in sorted(members, key=lambda member: member.node):
        zone = member.zone.encode()
        parts += (member.node.encode(), bytes((member.weight, len(zone))), zone)
    return xxh3(b"".join(parts))


assert limits.RING_REPLICAS < 256 and limits.RING_WEIGHT_MAX < 256 and limits.LABEL_TEXT < 256
