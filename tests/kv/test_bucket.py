"""What a bucket takes, refuses and gives, on a store of one node that answers at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import product
from math import inf, nan
from typing import Any, cast

import msgspec
import pytest

from microos import limits
from microos.errors import ConflictError, LimitError, MicroosError, NoQuorumError, RejectedError
from microos.kv.bucket import Bucket, Item, Level
from microos.kv.keeping import Keeping
from microos.kv.kv import Kv
from microos.node.kernel import Kernel
from microos.ring.epochs import frozen
from microos.ring.keeper import Keeper, KeeperSettings, Moved
from microos.types import Version
from tests.ring.log import Log, owner

SETTINGS = KeeperSettings(
    size_max=1 << 24,
    compare_interval=60.0,
    drop_grace=10.0,
    tombstone_window=3600.0,
    transfer_rate=1 << 25,
)


@cache
def formed_ring() -> Moved:
    state = Log().propose("a").state
    return Moved(state.ring(), frozen(state))


class Local:
    """Stands for the keeping of a node that is a cluster of its own."""

    def __init__(self, *, formed: bool = True) -> None:
        self.now = 100.0
        self.keeper = Keeper(
            owner("a"), SETTINGS, random=random.Random(1), now=self.now, wall=1_700_000_000.0
        )
        if formed:
            self.keeper.receive(formed_ring(), self.now)

    async def run(self, begin: Callable[[Keeper, float], int]) -> object:
        number = begin(self.keeper, self.now)
        effects = self.keeper.take()
        if not effects.done:  # It waits for a ring: until its deadline.
            self.now += 60.0
            self.keeper.wake(self.now)
            effects = self.keeper.take()
        self.keeper.check()
        [(found, result)] = effects.done
        assert (found, effects.asks) == (number, ())
        if isinstance(result, MicroosError):
            raise result
        return result

    def kv(self) -> Kv:
        return Kv(cast(Kernel, None), cast(Keeping, self), 5.0)

    def bucket(self, type: Any = Any, name: str = "things", **options: Any) -> Bucket[Any]:
        return self.kv().bucket(name, type, **options)


class Cart(msgspec.Struct, frozen=True):
    books: tuple[str, ...]


async def test_what_was_put_comes_back_as_its_type() -> None:
    carts = Local().bucket(Cart)

    version = await carts.put("ann", Cart(("Dune",)))

    assert await carts.get("ann") == Cart(("Dune",))
    assert await carts.read("ann") == Item(Cart(("Dune",)), version, None)
    assert await carts.get(b"ann") == Cart(("Dune",))
    assert await carts.exists("ann")
    assert await carts.get("bob") is None
    assert not await carts.exists("bob")


async def test_a_value_of_another_type_is_refused_and_named() -> None:
    local = Local()
    await local.bucket().put("ann", {"books": [1]})

    with pytest.raises(RejectedError, match="'things' under 'ann'") as refused:
        await local.bucket(Cart).get("ann")

    assert refused.value.reason == "bad_request"
    assert await local.bucket(Cart).exists("ann")


async def test_one_key_in_two_buckets_is_two_items() -> None:
    local = Local()
    await local.bucket(name="a").put("k", 1)
    await local.bucket(name="b").put("k", 2)

    assert await local.bucket(name="a").get("k") == 1
    assert await local.bucket(name="b").get("k") == 2


@pytest.mark.parametrize("name", ["", "a\0b", "x" * (limits.KV_BUCKET_TEXT + 1), "ü" * 65])
def test_a_bad_bucket_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="bucket name"):
        Local().bucket(name=name)


@pytest.mark.parametrize("key", ["", b"", "x" * (limits.KV_KEY_MAX + 1), "ü" * 513])
async def test_a_bad_key_is_refused(key: str | bytes) -> None:
    things = Local().bucket()

    for attempt in (things.get, things.read, things.exists, things.delete):
        with pytest.raises(LimitError, match="a key of"):
            await attempt(key)
    with pytest.raises(LimitError, match="a key of"):
        await things.put(key, 1)


async def test_a_value_too_long_is_refused_before_it_is_sent() -> None:
    things = Local().bucket(bytes)

    with pytest.raises(LimitError, match="a value of") as refused:
        await things.put("k", bytes(limits.KV_VALUE_MAX))

    assert refused.value.reason == "size"
    await things.put("k", bytes(limits.KV_VALUE_MAX - 5))


@pytest.mark.parametrize("ttl", [0.0, -1.0, nan])
async def test_a_time_to_live_must_be_positive(ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl must be positive"):
        await Local().bucket().put("k", 1, ttl=ttl)
    with pytest.raises(ValueError, match="ttl must be positive"):
        Local().bucket(ttl=ttl)


@pytest.mark.parametrize("timeout", [0.0, -1.0, nan, inf])
async def test_a_timeout_must_be_positive_and_finite(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be positive"):
        await Local().bucket().get("k", timeout=timeout)


async def test_an_unknown_level_is_refused() -> None:
    level = cast(Level, "all")

    with pytest.raises(ValueError, match="one of one, quorum, found 'all'"):
        Local().bucket(consistency=level)
    with pytest.raises(ValueError, match="one of one, quorum"):
        await Local().bucket().get("k", consistency=level)


@pytest.mark.parametrize("version", [-1, 1 << 126, 1 << 200])
async def test_a_version_nobody_can_have_been_told_is_refused(version: int) -> None:
    things = Local().bucket()

    with pytest.raises(ValueError, match="a version is"):
        await things.put("k", 1, if_version=version)
    with pytest.raises(ValueError, match="a version is"):
        await things.put("k", 1, version=version)
    with pytest.raises(ValueError, match="a version is"):
        await things.delete("k", if_version=version)
    with pytest.raises(ValueError, match="a version is"):
        await things.put("k", 1, version=0)


async def test_without_a_ring_until_the_deadline_there_is_no_quorum() -> None:
    things = Local(formed=False).bucket()

    for attempt in (things.get("k"), things.put("k", 1), things.put("k", 1, if_absent=True)):
        with pytest.raises(NoQuorumError, match="found none yet") as refused:
            await attempt
        assert refused.value.reason == "replicas"


# Every pair of options, and all of them together.

THERE = (None, "forever", "dying", "deleted")
TTL = (None, 0.3, inf)
IF_ABSENT = (False, True)
IF_VERSION = (None, "none", "known", "other")
LEVEL = (None, "one", "quorum")
REPEAT = (None, "newer", "older")


@pytest.mark.parametrize("there", THERE)
async def test_every_pair_of_options_composes(there: str | None) -> None:
    for ttl, if_absent, if_version, level, repeat in product(
        TTL, IF_ABSENT, IF_VERSION, LEVEL, REPEAT
    ):
        for bucket_ttl, bucket_level in ((None, "quorum"), (2.0, "one")):
            local = Local()
            things = local.bucket(int, ttl=bucket_ttl, consistency=bucket_level)
            older = await things.put("k", 0)
            local.now += 0.01
            known = Version(0)
            if there is not None:
                known = await things.put("k", 1, ttl=1.0 if there == "dying" else inf)
            if there in (None, "deleted"):
                await things.delete("k")
                known = Version(0)
            local.now += 0.01
            options: dict[str, Any] = {"ttl": ttl, "if_absent": if_absent, "consistency": level}
            wanted: int | None = None
            if if_version is not None:
                wanted = {"none": 0, "known": known, "other": older}[if_version]
                options["if_version"] = wanted
            if repeat is not None:
                newest = local.keeper.stamps.next(local.now) << 64
                options["version"] = newest if repeat == "newer" else older - 1

            expected = expect(if_absent, wanted, known, level, repeat)
            try:
                version = await things.put("k", 2, **options)
            except (TypeError, ConflictError) as error:
                found = error.reason if isinstance(error, ConflictError) else "contradiction"
                assert found == expected, options
                continue

            assert expected == ""
            item = await things.read("k")
            if repeat == "older":
                assert item is None or item.version > version
                continue
            assert item is not None
            assert (item.value, item.version) == (2, version)
            assert version == options.get("version", version)
            lives = ttl if ttl is not None else bucket_ttl
            assert item.expires == (None if lives in (None, inf) else pytest.approx(lives))
            local.now += 0.31
            assert await things.get("k") == (None if ttl == 0.3 else 2)


def expect(
    if_absent: bool, wanted: int | None, known: int, level: str | None, repeat: str | None
) -> str:
    """Return why a put is refused; empty: it is not."""
    if if_absent and wanted:
        return "contradiction"
    condition = 0 if if_absent else wanted
    if condition is None:
        return ""
    if repeat is not None or level == "one":
        return "contradiction"
    if condition == known:
        return ""
    return "exists" if condition == 0 else "version" if known else "absent"


async def test_a_delete_under_a_condition_takes_only_that_version() -> None:
    things = Local().bucket(int)
    first = await things.put("k", 1)
    second = await things.put("k", 2)

    with pytest.raises(ConflictError) as refused:
        await things.delete("k", if_version=first)
    assert (refused.value.reason, refused.value.facts["version"]) == ("version", second)
    await things.delete("k", if_version=second)

    assert await things.get("k") is None


async def test_a_conflict_says_the_version_that_is_there() -> None:
    things = Local().bucket(int)
    version = await things.put("k", 1)

    with pytest.raises(ConflictError) as refused:
        await things.put("k", 2, if_absent=True)

    assert refused.value.facts["version"] == version


async def test_update_changes_what_is_there_and_keeps_its_time() -> None:
    local = Local()
    things = local.bucket(int, ttl=60.0)
    await things.put("k", 1, ttl=10.0)
    local.now += 4.0

    assert await things.update("k", lambda value: value + 1, initial=0) == 2

    item = await things.read("k")
    assert item is not None
    assert item.value == 2
    assert item.expires == pytest.approx(6.0)


async def test_update_begins_with_what_it_is_told_where_there_is_nothing() -> None:
    things = Local().bucket(int, ttl=60.0)

    assert await things.update("k", lambda value: value + 1, initial=10) == 11
    assert await things.update("k", lambda value: value + 1, initial=10, ttl=5.0) == 12

    item = await things.read("k")
    assert item is not None
    assert item.expires == pytest.approx(5.0)


async def test_update_gives_up_when_others_change_it_each_time() -> None:
    local = Local()
    things = local.bucket(int)
    await things.put("k", 0)

    def change(value: int) -> int:
        # Somebody else is always faster.
        keeper = local.keeper
        slot = next(iter(keeper.replica.store.slots()))
        [(name, _)] = keeper.replica.store.entries(slot)
        keeper.put(
            slot, name, b"\x07", left=0, one=False, version=None, deadline=inf, now=local.now
        )
        keeper.take()
        return value + 1

    with pytest.raises(ConflictError, match="changed by others"):
        await things.update("k", change, initial=0)
    assert await things.get("k") == 7


async def test_a_full_store_refuses_what_grows_and_takes_deletes() -> None:
    local = Local()
    local.keeper.replica.store.size_max = 3000
    things = local.bucket(bytes)
    await things.put("a", bytes(1000))
    await things.put("b", bytes(1000))

    with pytest.raises(LimitError) as refused:
        await things.put("c", bytes(1000))
    assert refused.value.reason == "quota"
    await things.put("a", bytes(900))
    await things.delete("b")
    await things.put("c", bytes(1000))


def test_a_handle_says_its_name_and_level() -> None:
    assert repr(Local().bucket(consistency="one")) == "<Bucket things one>"
