"""What a node keeps of itself: who it is, which cluster it belongs to, the log and the state.

    load ─▶ is a cluster known? ── no ─▶ a search finds or founds one ─▶ join ─┐
                     │ yes                                                     ▼
                     └────▶ recover; what is damaged is set aside ───────▶ an open log

A member whose log is damaged is never repaired by cutting: acknowledged votes and
entries may be in what would be cut. Its files are set aside, and the node comes
back under a new id as a learner; the group replaces the old id in time.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec

from microos.codec import Decoder, encode
from microos.errors import RemoteProtocolError, StorageError
from microos.gossip.members import Remembered
from microos.node.runtime import Runtime
from microos.raft.bootstrap import Cluster
from microos.raft.composite import Machines
from microos.raft.entry import HardState, Persist, SnapshotMark, Token
from microos.raft.machine import Machine
from microos.storage.files import (
    DamagedError,
    Identity,
    load_identity,
    quarantine,
    read_small,
    save_identity,
    write_small,
)
from microos.storage.snapshot import read_snapshot, write_snapshot
from microos.storage.wal import Loaded, Wal
from microos.types import Index, NodeId, Term

CLUSTER_FILE = "cluster"
"""Small file that keeps what was founded."""


class Quarantined(msgspec.Struct, frozen=True):
    """This node's log is damaged and was set aside; it came back as a new node."""

    number: int
    why: str


class OpenLog(msgspec.Struct, frozen=True):
    """Everything a member goes on from."""

    wal: Wal
    loaded: Loaded
    mark: SnapshotMark | None
    machines: Machines


_decode_cluster: Decoder[Cluster] = Decoder(Cluster)
_decode_remembered: Decoder[Remembered] = Decoder(Remembered)


class Files:
    """The files of one node.

    Args:
        label: The cluster's label, as it was set.
        machines: What is replicated; complete before a log is opened.
    """

    def __init__(self, *, runtime: Runtime, label: str, machines: Sequence[Machine]) -> None:
        self._runtime = runtime
        self._disk = runtime.disk
        self._label = label
        self._machines = machines
        self.identity: Identity
        """Whose files these are; from `load` on."""
        self.quarantined = ""
        """Why the log was set aside; empty if it was not."""
        self.counters: Counter[str] = Counter()

    async def load(self) -> None:
        """Learn who this node is; one without files becomes somebody new.

        Raises:
            StorageError: The directory belongs to another cluster, or cannot be read.
        """
        found = await load_identity(self._disk)
        if found is None:
            found = self._new_identity(b"", 0)
            await save_identity(self._disk, found)
        if found.label != self._label:
            raise StorageError(
                f"expected a data directory of cluster {self._label!r}, "
                f"found one of {found.label!r}; name that cluster or another directory",
                reason="foreign",
            )
        self.identity = found

    def _new_identity(self, cluster: bytes, epoch: int) -> Identity:
        node = NodeId(self._runtime.entropy(16).hex())
        return Identity(node=node, cluster=cluster, epoch=epoch, label=self._label)

    async def remembered(self) -> Remembered | None:
        """Return the members known before the last end, if that can be read."""
        data = await read_small(self._disk, "members")
        if data is None:
            return None
        try:
            return _decode_remembered(data)
        except RemoteProtocolError:
            self.counters["members.file_unreadable"] += 1
            return None

    async def recover(self) -> OpenLog | None:
        """Open the log of a node that knows its cluster; set a damaged one aside."""
        identity = self.identity
        if not identity.cluster:
            return None
        data = await read_small(self._disk, CLUSTER_FILE)
        cluster = (
            _decode_cluster(data)
            if data is not None
            else Cluster(id=identity.cluster, epoch=identity.epoch)
        )
        try:
            return await self._open_log(cluster)
        except DamagedError as error:
            number = await quarantine(self._disk)
            self.identity = self._new_identity(identity.cluster, identity.epoch)
            await save_identity(self._disk, self.identity)
            self.quarantined = str(error)
            self._runtime.observe("node", Quarantined(number, str(error)))
            return await self._open_log(cluster)

    async def join(self, cluster: Cluster) -> OpenLog:
        """Take the cluster for this node's own, for good, and begin its log."""
        # First what was founded: a crash after the identity must not lose who votes.
        await write_small(self._disk, CLUSTER_FILE, encode(cluster))
        self.identity = msgspec.structs.replace(
            self.identity, cluster=cluster.id, epoch=cluster.epoch
        )
        await save_identity(self._disk, self.identity)
        return await self._open_log(cluster)

    async def _open_log(self, cluster: Cluster) -> OpenLog:
        """Recover log and state; a founding voter begins with the founding as its snapshot."""
        machines = Machines(cluster.epoch, self._machines)
        wal, loaded = await Wal.open(self._disk, self.identity)
        mark = loaded.mark
        if mark is None and self.identity.node in cluster.voters:
            mark = cluster.mark()
            machines.begin(mark)
            await write_snapshot(self._disk, mark, machines.freeze())
            hard_state = HardState(Term(1), NodeId(""), Index(1))
            await wal.write([Persist(Token(0, Term(1)), (), hard_state, mark, True)])
            loaded = msgspec.structs.replace(loaded, hard_state=hard_state, mark=mark)
        elif mark is not None:
            machines.restore(await read_snapshot(self._disk, mark))
        return OpenLog(wal, loaded, mark, machines)
