"""How one node runs: read once, frozen, checked as a whole before any socket opens.

    preset  <  microos.toml  <  MICROOS_* environment  <  arguments          later wins

Each field says its kind and range in its annotation and its meaning in the string
beneath it. Loading, checking, the commented TOML of `explain` and the manual are
made from these alone, so they cannot disagree.
"""

import dataclasses
import ipaddress
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from microos import limits
from microos.errors import SettingsError
from microos.fields import (
    SECRET,
    Fault,
    Told,
    at,
    converted,
    explained,
    flat,
    kinds,
    replaced,
    unknown,
)
from microos.types import parse_address

FILE = "microos.toml"
"""Read from the working directory if it is there and no other file is named."""

PREFIX = "MICROOS_"
OTHER_VARIABLES = ("MICROOS_NODE", "MICROOS_TIMEOUT", "MICROOS_FENCING_TOKEN")
"""Variables of the command line, which are no settings."""

DEFAULT_CLUSTER = "local"
SEEDS_MAX = 64

_Seconds = Annotated[float, Meta(gt=0.0, le=1e9)]
_Pause = Annotated[float, Meta(ge=0.0, le=1e9)]
_Patience = Annotated[float, Meta(ge=0.0)]
_Factor = Annotated[float, Meta(gt=0.0, le=1000.0)]
_Multiple = Annotated[float, Meta(ge=1.0, le=1000.0)]
_Share = Annotated[float, Meta(ge=0.0, lt=1.0)]
_Count = Annotated[int, Meta(ge=0, le=1_000_000)]
_Number = Annotated[int, Meta(ge=1, le=1_000_000_000)]
# The ceiling is what every path carries; a brief and a user state must fit below the floor.
_DatagramSize = Annotated[int, Meta(ge=1200, le=1400)]
# Half a frame, so that the heads of many small entries still fit beside them.
_AppendSize = Annotated[int, Meta(ge=64 * limits.KIB, le=limits.FRAME_MAX // 2)]
_Rate = Annotated[int, Meta(ge=64 * limits.KIB, le=1 << 40)]
_Memory = Annotated[int, Meta(ge=limits.MIB, le=1 << 40)]
_Weight = Annotated[int, Meta(ge=1, le=limits.RING_WEIGHT_MAX)]
_EntrySize = Annotated[int, Meta(ge=limits.COMMAND_MAX, le=1024 * limits.MIB)]
_Secret = Annotated[str | None, SECRET]


@dataclass(frozen=True, kw_only=True)
class GossipSettings:
    """Membership: SWIM with Lifeguard."""

    probe_interval: _Seconds = 1.0
    """Time between two probes of one node, T [s]. Lower finds the dead sooner and costs more."""

    probe_timeout_min: _Seconds = 0.02
    """Least wait for an ack [s], while our own loop is not late; on a busy host the longest."""

    probe_timeout_max: _Seconds = 0.5
    """Longest wait for an ack before others are asked [s]. Below `probe_interval`."""

    indirect_probes: _Count = 3
    """Members asked to probe on our behalf. SWIM's k."""

    verifiers: _Count = 6
    """Nearest predecessors that probe a fresh suspect at once."""

    suspicion_factor: _Factor = 4.0
    """Shortest suspicion = factor × max(1, log10 n) × T. memberlist's multiplier."""

    suspicion_ceiling_factor: _Multiple = 6.0
    """Longest suspicion = this × the shortest; Lifeguard's 6."""

    confirmations_wanted: _Count = 3
    """Accusers beyond the first that bring the wait down to the shortest. Lifeguard's K."""

    awareness_max: _Number = 8
    """Local health is a score of 0..this - 1."""

    stall_ratio: _Factor = 0.5
    """A wake-up later than this × T means that we were away, not the others."""

    refused_wait: _Seconds = 0.2
    """Least time between the first refused dial and death by refusals [s]."""

    dial_timeout_min: _Seconds = 0.05
    """Least wait for a dial made as a probe [s]."""

    retransmit_factor: _Number = 3
    """A broadcast is sent factor × ceil(log2(n + 1)) times by each node."""

    eager_delay: _Pause = 0.002
    """How long fresh news waits for company before it leaves [s]."""

    gossip_interval: _Seconds = 0.2
    """Time between repeats of news while there is any [s]."""

    gossip_fanout: _Number = 3
    """Members that get each repeat."""

    full_sync_interval: _Seconds = 300.0
    """Time between full exchanges of tables, the safety net [s]."""

    exchange_timeout: _Seconds = 5.0
    """Longest wait for an answer on a stream [s]."""

    reconnect_interval: _Seconds = 5.0
    """Time between calls to one of the dead, and to seeds nobody answers for [s]."""

    reconnect_timeout: _Seconds = 86_400.0
    """How long the dead and the left stay known [s]."""

    leave_timeout: _Pause = 1.0
    """Longest wait for others to take note of a leave [s]."""

    datagram_size: _DatagramSize = 1200
    """Largest UDP payload sent [bytes]. IPv6 guarantees 1,232."""


@dataclass(frozen=True, kw_only=True)
class RaftSettings:
    """Consensus."""

    election_timeout_max: _Seconds = 1.0
    """E: the timeout is drawn from [E/2, E) [s]. etcd draws from 1–2 s."""

    heartbeat_interval: _Seconds = 0.125
    """Time between two heartbeats of a leader [s]. At most E/8."""

    pre_vote: bool = True
    """Ask before raising the term, so that a cut-off node disturbs nobody (dissertation §9.6)."""

    check_quorum: bool = True
    """A leader that does not hear a majority for E/2 steps down."""

    append_bytes_max: _AppendSize = 64 * 1024
    """Entries per message [bytes]; a single larger entry still goes. A longer message would
    stand before heartbeats; many are on their way at once, so a shorter one costs little."""

    append_entries_max: _Number = 4096
    """Entries per message."""

    inflight_max: _Number = 256
    """Appends on their way to one follower."""

    inflight_bytes_max: _EntrySize = 8 * 1024 * 1024
    """Their bytes; at least the largest entry."""

    uncommitted_bytes_max: _EntrySize = 64 * 1024 * 1024
    """Proposals beyond it are dropped: `OverloadedError` [bytes]."""

    apply_bytes_max: _Number = 1024 * 1024
    """Handed out and not yet applied [bytes]."""

    late_ratio: _Factor = 0.25
    """A wake-up later than this × E starts no election: we were away, not the leader."""

    stall_after_ratio: _Factor = 0.5
    """A write older than this × E is a stalled disk: no candidacy, a leader hands over."""

    clock_drift_max: _Share = 0.10
    """Relative difference between any two clocks that leases still survive."""

    snapshot_after_entries: _Number = 20_000
    """Entries applied since the last snapshot that call for the next."""

    snapshot_after_bytes: _Number = 4 * 1024 * 1024
    """Bytes of log since the last snapshot that call for the next."""

    trailing_entries: _Count = 2_000
    """Entries kept behind a snapshot for slow followers."""

    voters: int = 0
    """Voters wanted: 1, 3 or 5; 0 chooses by the cluster's size: 1, from three 3, from five 5."""

    dead_after: _Seconds = 30.0
    """A voter dead in gossip and silent for this long is replaced [s]. At least 10 E."""

    quiet: _Pause = 2.0
    """How long a seed listens for an existing cluster before it founds one [s]."""

    evidence: bool = True
    """A leader whose process is proven dead is replaced at once."""


@dataclass(frozen=True, kw_only=True)
class SyncSettings:
    """Locks."""

    ttl: _Seconds = 15.0
    """How long a lease lives without a sign of its owner [s]. At least 2 E."""

    wait: _Patience = 15.0
    """How long taking a lock waits by default [s]; 0 tries, inf waits."""

    command_ttl: _Seconds = 60.0
    """The same for a node's own session, which carries its plain commands [s]."""


@dataclass(frozen=True, kw_only=True)
class RingSettings:
    """Who owns the store's keys."""

    participate: bool = True
    """Whether this node owns keys; one that does not is a client only."""

    weight: _Weight = 1
    """This node's share of the keys relative to others; twice the weight owns twice as many."""

    zone: str = ""
    """What fails together with this node: a rack, a host. Copies are spread over zones."""

    batch_window: _Seconds = 1.0
    """How long a change of members waits for others to join it in one ring epoch [s]. Lower
    reacts sooner and moves keys more often."""

    batch_window_max: _Seconds = 2.0
    """Longest such wait while changes keep coming, and least time between ring epochs [s]."""

    replace_after: _Seconds = 10.0
    """A dead node's copies are made anew elsewhere after this, and later while the leader's own
    health is poor [s]. Lower copies keys for a short absence, higher leaves them at risk."""


@dataclass(frozen=True, kw_only=True)
class KvSettings:
    """The store."""

    timeout: _Seconds = 5.0
    """How long an operation may take if its caller does not say [s]."""

    memory: _Memory = 256 * 1024 * 1024
    """What this node's copies may take [bytes]. A put that needs more is refused."""

    compare_interval: _Seconds = 5.0
    """Time between two comparisons of copies with another owner [s]. Lower repairs sooner what
    nobody reads, at 8 KiB per comparison."""

    transfer_rate: _Rate = 32 * 1024 * 1024
    """How fast this node takes over copies of others [bytes/s]. Lower leaves more of the network
    to calls, higher is whole again sooner."""

    drop_grace: _Seconds = 10.0
    """How long a copy that is no longer this node's is kept at least [s]. At least 2 `timeout`."""

    tombstone_window: _Seconds = 3600.0
    """How long a deleted key leaves a trace at least [s]: who was away longer brings nothing
    back."""


@dataclass(frozen=True, kw_only=True)
class RpcSettings:
    """Calls."""

    timeout: _Seconds = 5.0
    """How long a call may take if neither its caller nor its endpoint says [s]."""

    grace: _Pause = 10.0
    """How long handlers that run may go on while the node leaves [s]."""

    remote_traceback: bool = False
    """Whether a handler's traceback travels to its caller: helpful at home, telling elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything one node is told at start. Presets: `local()`, `lan()`, `wan()`."""

    name: str = ""
    """For people; unique among live members. Empty: host name and four digits of the node id."""

    bind: str = "127.0.0.1:0"
    """HOST:PORT for datagrams and streams alike; port 0 takes a free one."""

    seeds: tuple[str, ...] = ()
    """HOST:PORT of some nodes to begin with; the same list everywhere. Empty: found alone."""

    bootstrap: Literal["seeds", "solo", "join"] = "seeds"
    """Who founds the raft group: a majority of the seeds, this node alone, or never this node."""

    cluster: str = "local"
    """The cluster's label. Nodes with different labels never meet."""

    secret: _Secret = field(default=None, repr=False)
    """The cluster's key as `microos keygen` prints it: all traffic is sealed with it. Needed off
    loopback; never shown. While it is being changed several, joined by commas: the first seals,
    all open. Best given as MICROOS_SECRET."""

    data_dir: Path | None = None
    """Where identity, log and snapshots are kept. None: in memory, a new node at each start."""

    gossip: GossipSettings = field(default_factory=GossipSettings)
    raft: RaftSettings = field(default_factory=RaftSettings)
    sync: SyncSettings = field(default_factory=SyncSettings)
    rpc: RpcSettings = field(default_factory=RpcSettings)
    ring: RingSettings = field(default_factory=RingSettings)
    kv: KvSettings = field(default_factory=KvSettings)

    @classmethod
    def local(cls, **changes: Any) -> "Settings":
        """Return settings for one machine: everything on loopback, quick to accuse."""
        return _preset("local", changes)

    @classmethod
    def lan(cls, **changes: Any) -> "Settings":
        """Return settings for one network; the defaults of every field."""
        return _preset("lan", changes)

    @classmethod
    def wan(cls, **changes: Any) -> "Settings":
        """Return settings for nodes far apart: slow to accuse, slow to elect."""
        return _preset("wan", changes)

    @classmethod
    def load(
        cls,
        path: Path | str | None = None,
        environment: Mapping[str, str] | None = None,
        *,
        defaults: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> "Settings":
        """Return what preset, file, environment and arguments say together, checked.

        Args:
            path: A TOML file; None: `microos.toml` in the working directory, if there.
            environment: Instead of the process's: `MICROOS_BIND`,
                `MICROOS_RAFT__ELECTION_TIMEOUT_MAX`, lists joined by commas.
            defaults: Fields as a program has them, instead of the preset's.
            arguments: Fields; a section as a mapping or a settings value. `preset="wan"`
                chooses among `local`, `lan`, `wan`; without it, `local` while bound to loopback.

        Raises:
            SettingsError: Every fault of every source, one line each.
        """
        faults: list[str] = []
        told = {
            **flat(defaults or {}, "default"),
            **_from_file(path, faults),
            **_from_environment(os.environ if environment is None else environment),
            **flat(arguments, "argument"),
        }
        settings = _settled(told, faults)
        faults += settings.faults()
        if faults:
            raise SettingsError(faults)
        return settings

    def replace(self, **changes: Any) -> "Settings":
        """Return these settings with some fields changed; not checked."""
        return dataclasses.replace(self, **changes)

    def validate(self) -> None:
        """Check every value and every relation among them.

        Raises:
            SettingsError: All that is wrong, one line each.
        """
        faults = self.faults()
        if faults:
            raise SettingsError(faults)

    def faults(self) -> list[str]:
        """Return all that is wrong, one line each: what is wanted, found, and to be done."""
        wrong: list[str] = []
        for section, kind in SECTIONS.items():
            if not isinstance(getattr(self, section), kind):
                wrong.append(
                    f"{section}: expected a {kind.__name__}, found {getattr(self, section)!r}"
                )
        for name in [] if wrong else KINDS:
            _believed(name, Told(at(self, name), ""), wrong)
        # Relations among values that are no values themselves would only confuse.
        return wrong or [*_faults_of_node(self), *_faults_of_timing(self)]

    def explain(self) -> str:
        """Return these settings as TOML with a comment on each; loading it gives them again.

        Only the secret is left out: what is printed is read by others.
        """
        return EXPLANATION + explained(self)


KINDS = kinds(Settings)
"""What every field may be, by its dotted name."""

SECTIONS = {
    "gossip": GossipSettings,
    "raft": RaftSettings,
    "sync": SyncSettings,
    "rpc": RpcSettings,
    "ring": RingSettings,
    "kv": KvSettings,
}

EXPLANATION = """\
# Settings of one microos node. Every line may be left out. MICROOS_<FIELD> and
# MICROOS_<SECTION>__<FIELD> in the environment win over this file, and arguments
# win over both. `preset` (local, lan or wan) chooses what the left out lines are.
"""


# Presets: what differs from the defaults of the fields, which are those of `lan`.

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "local": {
        "gossip": {
            "probe_interval": 0.5,
            "probe_timeout_min": 0.01,
            "probe_timeout_max": 0.2,
            "suspicion_factor": 3.0,
            "refused_wait": 0.1,
            "eager_delay": 0.001,
            "gossip_interval": 0.05,
            "exchange_timeout": 1.0,
            "reconnect_interval": 2.0,
            "leave_timeout": 0.5,
        },
        "raft": {"election_timeout_max": 0.3, "heartbeat_interval": 0.03},
        "rpc": {"remote_traceback": True},
        "ring": {"replace_after": 3.0, "batch_window": 0.3, "batch_window_max": 1.0},
        "kv": {"compare_interval": 2.0},
    },
    "lan": {},
    "wan": {
        "gossip": {
            "probe_interval": 5.0,
            "probe_timeout_min": 0.1,
            "probe_timeout_max": 3.0,
            "suspicion_factor": 6.0,
            "refused_wait": 1.0,
            "eager_delay": 0.005,
            "gossip_interval": 0.5,
            "gossip_fanout": 4,
            "full_sync_interval": 600.0,
            "exchange_timeout": 10.0,
            "reconnect_interval": 15.0,
            "leave_timeout": 5.0,
        },
        "raft": {
            "election_timeout_max": 6.0,
            "heartbeat_interval": 0.5,
            "dead_after": 60.0,
            "evidence": False,
        },
    },
}


def _preset(name: str, changes: Mapping[str, Any]) -> Settings:
    preset = PRESETS[name]
    sections: dict[str, Any] = {
        "gossip": GossipSettings(**preset.get("gossip", {})),
        "raft": RaftSettings(**preset.get("raft", {})),
        "rpc": RpcSettings(**preset.get("rpc", {})),
        "ring": RingSettings(**preset.get("ring", {})),
        "kv": KvSettings(**preset.get("kv", {})),
    }
    return Settings(**{**sections, **changes})


# Loading: each source tells values by dotted name; then one place believes them or not.


def _from_file(path: Path | str | None, faults: list[str]) -> dict[str, Told]:
    file = Path(FILE if path is None else path)
    if path is None and not file.is_file():
        return {}
    import tomllib  # Here, because only who has a file pays for reading it.

    try:
        return flat(tomllib.loads(file.read_text(encoding="utf-8")), str(file))
    except OSError as error:
        faults.append(f"settings file {file}: expected a readable file, found {error.strerror}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        faults.append(f"settings file {file}: expected TOML, found {error}")
    return {}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Told]:
    told: dict[str, Told] = {}
    for variable in sorted(environment):
        if variable.startswith(PREFIX) and variable not in OTHER_VARIABLES:
            name = variable.removeprefix(PREFIX).lower().replace("__", ".", 1)
            value: Any = environment[variable]
            if name == "seeds":
                value = tuple(seed for part in value.split(",") if (seed := part.strip()))
            elif name in ("data_dir", "secret"):
                value = value or None
            told[name] = Told(value, variable, strict=False)
    return told


def _settled(told: Mapping[str, Told], faults: list[str]) -> Settings:
    """Return the preset with everything told that can be believed; the rest becomes faults."""
    changes: dict[str, Any] = {}
    preset = told.get("preset")
    for name, each in told.items():
        if name in KINDS:
            changes |= _believed(name, each, faults)
        elif name in SECTIONS:
            faults.append(f"{name}{each.where}: expected a section [{name}], found {each.value!r}")
        elif name != "preset":
            faults.append(str(unknown(name, each, [*KINDS, "preset"])))
    if preset is None:
        chosen = "local" if is_loopback(changes.get("bind", Settings.bind)) else "lan"
    else:
        chosen = preset.value
        if not isinstance(chosen, str) or chosen not in PRESETS:
            known = ", ".join(PRESETS)
            faults.append(f"preset{preset.where}: expected one of {known}, found {chosen!r}")
            chosen = "lan"
    settings: Settings = replaced(_preset(chosen, {}), changes)
    return settings


def _believed(name: str, told: Told, faults: list[str]) -> dict[str, Any]:
    """Return the one change that is told, or none and one more fault."""
    try:
        return {name: converted(name, KINDS[name], told)}
    except Fault as fault:
        faults.append(str(fault))
        return {}


# Checking.


def is_loopback(address: str) -> bool:
    """Return whether HOST:PORT is on this machine alone; names other than localhost are not."""
    try:
        host = parse_address(address).host
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _faults_of_node(settings: Settings) -> Iterator[str]:
    for name, limit, least in (
        ("name", limits.NAME_TEXT, 0),
        ("cluster", limits.LABEL_TEXT, 1),
        ("ring.zone", limits.NAME_TEXT, 0),
    ):
        text: str = at(settings, name)
        size = len(text.encode("utf-8", "surrogatepass"))
        if not (least <= size <= limit and text.isprintable() and text == text.strip()):
            yield (
                f"{name}: expected {least}..{limit} bytes of printable text without spaces "
                f"around it, found {text!r}"
            )
    for name, address in (("bind", settings.bind), *(("seeds", seed) for seed in settings.seeds)):
        try:
            port = parse_address(address).port
        except ValueError as error:
            yield f"{name}: {error}"
        else:
            if name == "seeds" and port == 0:
                yield f"seeds: expected the port a node listens on, found {address!r}"
            elif name == "bind" and not is_loopback(address):
                yield from _faults_of_the_open(settings)
    if settings.secret is not None:
        yield from _faults_of_the_secret(settings.secret)
    for seed, count in Counter(settings.seeds).items():
        if count > 1:
            yield f"seeds: expected each address once, found {seed!r} {count} times"
    if len(settings.seeds) > SEEDS_MAX:
        yield f"seeds: expected at most {SEEDS_MAX}, found {len(settings.seeds)}; a few are enough"
    if settings.bootstrap == "join" and not settings.seeds:
        yield "bootstrap: join needs seeds to find a cluster by, found none; name some"


def _faults_of_the_open(settings: Settings) -> Iterator[str]:
    """Off loopback strangers can listen and speak, and other clusters live next door."""
    host = parse_address(settings.bind).host
    if settings.secret is None:
        yield (
            f"bind: binding {host} off loopback needs a key to seal with, found no secret; "
            "make one with `microos keygen` and give it to every node as MICROOS_SECRET, "
            "or bind 127.0.0.1"
        )
    if settings.cluster == DEFAULT_CLUSTER:
        yield (
            f"cluster: binding {host} off loopback needs a label of the cluster's own, "
            f"found the default {DEFAULT_CLUSTER!r}; set cluster"
        )


def _faults_of_the_secret(secret: str) -> Iterator[str]:
    # Here, because only who has a secret pays for reading it.
    from microos.keyring import parse_keys

    try:
        parse_keys(secret)
    except ValueError as error:
        yield f"secret: {error}"


def _faults_of_timing(settings: Settings) -> Iterator[str]:
    gossip, raft, sync = settings.gossip, settings.raft, settings.sync
    ring, kv = settings.ring, settings.kv
    election = raft.election_timeout_max
    e = f"raft.election_timeout_max = {election:g} s"
    relations = (
        (
            "gossip.probe_timeout_max",
            gossip.probe_timeout_max < gossip.probe_interval,
            f"below gossip.probe_interval = {gossip.probe_interval:g} s",
        ),
        (
            "gossip.probe_timeout_min",
            gossip.probe_timeout_min <= gossip.probe_timeout_max,
            f"at most gossip.probe_timeout_max = {gossip.probe_timeout_max:g} s",
        ),
        (
            "gossip.eager_delay",
            gossip.eager_delay <= gossip.gossip_interval,
            f"at most gossip.gossip_interval = {gossip.gossip_interval:g} s",
        ),
        # etcd asks for a tenth; between drawn timeouts of E/2 four heartbeats may be lost.
        ("raft.heartbeat_interval", raft.heartbeat_interval <= election / 8, f"at most {e} / 8"),
        ("raft.voters", raft.voters in (0, 1, 3, 5), "0, 1, 3 or 5"),
        ("raft.dead_after", raft.dead_after >= 10 * election, f"at least 10 times {e}"),
        ("sync.ttl", sync.ttl >= 2 * election, f"at least twice {e}"),
        ("sync.command_ttl", sync.command_ttl >= 2 * election, f"at least twice {e}"),
        (
            "ring.batch_window",
            ring.batch_window <= ring.batch_window_max,
            f"at most ring.batch_window_max = {ring.batch_window_max:g} s",
        ),
        ("kv.drop_grace", kv.drop_grace >= 2 * kv.timeout, f"at least twice {kv.timeout:g} s"),
        (
            "kv.tombstone_window",
            kv.tombstone_window >= 10 * ring.replace_after,
            f"at least 10 times ring.replace_after = {ring.replace_after:g} s",
        ),
    )
    for name, holds, wanted in relations:
        if not holds:
            yield f"{name}: expected {wanted}, found {at(settings, name)}"
