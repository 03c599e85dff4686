import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.gossip.digest import Digest, Repairs, hash_of
from microos.types import NodeId


@pytest.mark.prop
@settings(max_examples=80)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3)), max_size=40), st.randoms()
)
def test_equal_tables_have_equal_digests_whatever_the_way(
    changes: list[tuple[str, int]], random: object
) -> None:
    walked, fresh = Digest(), Digest()
    table: dict[str, int] = {}

    for node, version in changes:
        old, new = table.get(node, 0), hash_of((node, version)) if version else 0
        walked.replace(NodeId(node), old, new)
        table[node] = new
    for node in sorted(table, reverse=True):
        fresh.replace(NodeId(node), 0, table[node])

    assert (walked.total, walked.count, walked.buckets) == (fresh.total, fresh.count, fresh.buckets)


def repairs() -> Repairs:
    return Repairs(interval=1.0, tick=0.2)


def test_one_difference_proves_nothing() -> None:
    assert not repairs().compare(1, 2, 0.0, quiet=True)


def test_a_lasting_difference_is_repaired() -> None:
    node = repairs()

    assert not node.compare(1, 2, 0.0, quiet=True)
    assert not node.compare(1, 2, 0.1, quiet=True)
    assert node.compare(1, 2, 0.3, quiet=True)


def test_an_equal_digest_or_news_under_way_begins_anew() -> None:
    node = repairs()

    for ours, quiet in ((1, True), (2, True), (1, True), (1, False), (1, True)):
        assert not node.compare(ours, 2, 0.0, quiet=quiet)

    assert not node.compare(1, 2, 0.1, quiet=True)


def test_a_pair_that_was_repaired_rests() -> None:
    node = repairs()
    assert [node.compare(1, 2, at, quiet=True) for at in (0.0, 1.0)] == [False, True]

    assert not any(node.compare(2, 1, at, quiet=True) for at in (2.0, 3.0, 30.0))
    assert node.compare(1, 3, 30.5, quiet=True)


def test_at_most_eight_repairs_are_served_in_an_interval() -> None:
    node = repairs()

    assert [node.serve(0.0) for _ in range(10)].count(True) == 8
    assert node.serve(1.0)
