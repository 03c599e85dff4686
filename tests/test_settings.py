"""Settings: four sources in order, every fault at once, and an explanation that loads back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microos.errors import SettingsError
from microos.fields import wanted
from microos.keyring import key_text
from microos.settings import KINDS, GossipSettings, RaftSettings, Settings, SyncSettings

KEY = key_text(bytes(range(32)))
TEXT = st.text("""aZ9"'\\#=[é→💡""", max_size=8)


def load(text: str = "", tmp_path: Path | None = None, **arguments: Any) -> Settings:
    path = None
    if tmp_path is not None:
        path = tmp_path / "microos.toml"
        path.write_text(text, encoding="utf-8")
    return Settings.load(path, {}, **arguments)


def faults(**arguments: Any) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        Settings.load(None, {}, **arguments)
    return caught.value.faults


@pytest.mark.parametrize("preset", [Settings(), Settings.local(), Settings.lan(), Settings.wan()])
def test_every_preset_is_sound(preset: Settings) -> None:
    preset.validate()

    assert preset.raft.heartbeat_interval <= preset.raft.election_timeout_max / 8


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text('cluster = "file"\nname = "file"\n[raft]\nvoters = 1\nquiet = 9.0\n')
    environment = {"MICROOS_NAME": "variable", "MICROOS_RAFT__VOTERS": "3"}

    chosen = Settings.load(file, environment, raft={"voters": 5})

    assert (chosen.cluster, chosen.name, chosen.raft.voters) == ("file", "variable", 5)
    assert chosen.raft.quiet == 9.0


def test_the_working_directorys_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "microos.toml").write_text('cluster = "here"\n')
    monkeypatch.chdir(tmp_path)

    assert Settings.load(None, {}).cluster == "here"


def test_a_file_named_and_missing_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a readable file, found No such file"):
        Settings.load(tmp_path / "none.toml", {})


def test_a_file_that_is_no_toml_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected TOML"):
        load("bind = ", tmp_path)


def test_loopback_is_local_unless_told_otherwise() -> None:
    assert load() == Settings.local()
    assert load(preset="wan") == Settings.wan()
    assert Settings.load(None, {"MICROOS_PRESET": "lan"}) == Settings.lan()


def test_the_environment_carries_every_kind() -> None:
    chosen = Settings.load(
        None,
        {
            "MICROOS_SEEDS": "127.0.0.1:1, [::1]:2",
            "MICROOS_DATA_DIR": "/data",
            "MICROOS_BOOTSTRAP": "solo",
            "MICROOS_RAFT__EVIDENCE": "false",
            "MICROOS_SYNC__WAIT": "inf",
            "MICROOS_NODE": "not a setting",
            "PATH": "/bin",
        },
    )

    assert chosen.seeds == ("127.0.0.1:1", "[::1]:2")
    assert (chosen.data_dir, chosen.bootstrap) == (Path("/data"), "solo")
    assert (chosen.raft.evidence, chosen.sync.wait) == (False, float("inf"))


def test_all_faults_of_all_sources_come_at_once(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text('nmae = "x"\nraft = 1\n[gossip]\nprobe_interval = "often"\n')

    with pytest.raises(SettingsError) as caught:
        Settings.load(file, {"MICROOS_RAFT__VOTERS": "x"}, bootstrap="maybe", preset=[], bind="x")

    assert caught.value.faults == (
        f"nmae ({file}): no such setting; did you mean name?",
        f"raft ({file}): expected a section [raft], found 1",
        f"gossip.probe_interval ({file}): expected a number above 0, found 'often'",
        "raft.voters (MICROOS_RAFT__VOTERS): expected a whole number, found 'x'",
        "bootstrap (argument): expected one of seeds, solo, join, found 'maybe'",
        "preset (argument): expected one of local, lan, wan, found []",
        "bind: expected HOST:PORT, found 'x'",
    )


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"raft": {"heartbeat_interval": 0.2}}, "raft.heartbeat_interval: expected at most"),
        ({"raft": {"dead_after": 1.0}}, "raft.dead_after: expected at least 10 times"),
        ({"raft": {"voters": 2}}, "raft.voters: expected 0, 1, 3 or 5, found 2"),
        ({"ring": {"batch_window": 3.0}}, "ring.batch_window: expected at most"),
        ({"ring": {"weight": 17}}, "ring.weight (argument): expected a whole number from 1 up"),
        ({"ring": {"zone": "z" * 129}}, "ring.zone: expected 0..128 bytes"),
        ({"raft": {"clock_drift_max": 1.0}}, "raft.clock_drift_max (argument): expected a num"),
        ({"sync": {"ttl": 0.1}}, "sync.ttl: expected at least twice"),
        ({"sync": {"command_ttl": 0.1}}, "sync.command_ttl: expected at least twice"),
        ({"sync": {"wait": float("nan")}}, "sync.wait (argument): expected a number from 0"),
        ({"gossip": {"probe_timeout_max": 0.5}}, "gossip.probe_timeout_max: expected below"),
        ({"gossip": {"probe_timeout_min": 0.3}}, "gossip.probe_timeout_min: expected at most"),
        ({"gossip": {"eager_delay": 1.0}}, "gossip.eager_delay: expected at most"),
        ({"gossip": {"datagram_size": 500}}, "gossip.datagram_size (argument): expected a wh"),
        ({"name": "a\nb"}, "name: expected 0..128 bytes of printable text"),
        ({"name": "é" * 65}, "name: expected 0..128 bytes"),
        ({"cluster": ""}, "cluster: expected 1..255 bytes"),
        ({"seeds": ["127.0.0.1"]}, "seeds: expected HOST:PORT, found '127.0.0.1'"),
        ({"seeds": ["127.0.0.1:0"]}, "seeds: expected the port a node listens on"),
        ({"seeds": ["a:1", "a:1"]}, "seeds: expected each address once, found 'a:1' 2 times"),
        ({"seeds": [f"a:{n}" for n in range(1, 66)]}, "seeds: expected at most 64, found 65"),
        ({"bootstrap": "join"}, "bootstrap: join needs seeds to find a cluster by, found none"),
        ({"data_dir": 3}, "data_dir (argument): expected a path or nothing, found 3"),
    ],
)
def test_what_cannot_work_is_said_before_the_start(arguments: dict[str, Any], fault: str) -> None:
    (found,) = faults(**arguments)

    assert found.startswith(fault)
    assert "\n" not in found


def test_off_loopback_needs_a_key_and_a_label() -> None:
    assert faults(bind="10.0.0.5:7946") == (
        "bind: binding 10.0.0.5 off loopback needs a key to seal with, found no secret; "
        "make one with `microos keygen` and give it to every node as MICROOS_SECRET, "
        "or bind 127.0.0.1",
        "cluster: binding 10.0.0.5 off loopback needs a label of the cluster's own, "
        "found the default 'local'; set cluster",
    )
    assert len(faults(bind="example.org:1", cluster="shop")) == 1
    assert len(faults(bind="10.0.0.5:7946", secret=KEY)) == 1
    load(bind="10.0.0.5:7946", secret=KEY, cluster="shop").validate()


@pytest.mark.parametrize(
    ("secret", "fault"),
    [
        ("hunter2", "expected 32 bytes as base64 or hex, found 7 other characters as key 1"),
        (f"{KEY},", "expected 32 bytes as base64 or hex, found 0 other characters as key 2"),
        (f"{KEY}, {KEY}", "keys 1 and 2 cannot be told apart, their id is "),
        (",".join([KEY] * 9), "expected at most 8 keys, found 9"),
    ],
)
def test_a_secret_that_is_none_is_not_shown(secret: str, fault: str) -> None:
    (found,) = faults(secret=secret)

    assert found.startswith(f"secret: {fault}")
    assert KEY not in found
    assert "hunter2" not in found


def test_a_secret_is_never_shown() -> None:
    chosen = Settings.load(None, {"MICROOS_SECRET": KEY})

    assert chosen.secret == KEY
    assert KEY not in repr(chosen) + chosen.explain()
    assert "# secret is set, and hidden" in chosen.explain()
    with pytest.raises(SettingsError) as caught:
        Settings(secret=KEY.encode()).validate()  # type: ignore[arg-type]
    assert str(caught.value) == "secret: expected a text or nothing, found something else"
    assert Settings.load(None, {"MICROOS_SECRET": ""}).secret is None


def test_a_value_made_in_code_is_checked_as_well() -> None:
    with pytest.raises(SettingsError, match="gossip: expected a GossipSettings, found 3"):
        Settings(gossip=3).validate()  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"raft\.voters: expected a whole number"):
        Settings(raft=RaftSettings(voters="3")).validate()  # type: ignore[arg-type]


def test_a_section_may_be_given_as_a_value() -> None:
    chosen = load(gossip=GossipSettings(gossip_fanout=4), preset="lan")

    assert chosen == Settings.lan().replace(gossip=GossipSettings(gossip_fanout=4))


@given(
    name=TEXT,
    directory=st.none() | TEXT.filter(bool).map(Path),
    seeds=st.lists(st.integers(1, 65535), unique=True, max_size=3),
    ttl=st.floats(12.0, 1e9),
    wait=st.floats(0.0),
    evidence=st.booleans(),
    window=st.integers(1, 10**9),
)
@settings(max_examples=25, deadline=None)
def test_the_explanation_loads_back(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    directory: Path | None,
    seeds: list[int],
    ttl: float,
    wait: float,
    evidence: bool,
    window: int,
) -> None:
    preset = Settings.wan()
    chosen = preset.replace(
        name=name,
        data_dir=directory,
        seeds=tuple(f"[::1]:{port}" for port in seeds),
        sync=SyncSettings(ttl=ttl, wait=wait),
        raft=dataclasses.replace(preset.raft, evidence=evidence, inflight_max=window),
    )
    file = tmp_path_factory.getbasetemp() / "explained.toml"
    file.write_text(chosen.explain(), encoding="utf-8")

    assert Settings.load(file, {}) == chosen


def test_every_field_is_explained() -> None:
    text = Settings().explain()

    for name, kind in KINDS.items():
        field = name.rpartition(".")[2]
        words = wanted(kind)
        assert f"\n# {words[0].upper()}{words[1:]}.\n{field} = " in text or (
            name in ("data_dir", "secret")
        )
