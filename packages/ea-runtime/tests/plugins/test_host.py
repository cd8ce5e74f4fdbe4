"""Finding plugins, blocking them, loading files, and two plugins of one name."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.hookspecs import KINDS, hookimpl
from ea_runtime.plugins import discovery
from ea_runtime.plugins.entries import PluginInfo
from ea_runtime.plugins.host import Host, get_host, list_plugins, make_host, set_host
from ea_runtime.records import CommandRecord, SamplerRecord, VaeRecord
from ea_runtime.testing import host_with, write_package

SAMPLER = """
from ea_runtime.hookspecs import hookimpl
from ea_runtime.records import SamplerRecord

@hookimpl
def ea_samplers():
    return [SamplerRecord("{name}", "for a test", lambda **config: None)]
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of sys.path to install packages into."""
    monkeypatch.delenv("EA_PLUGINS_BLOCK", raising=False)
    monkeypatch.delenv("EA_NO_PLUGINS", raising=False)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def sampler_package(site: Path, package: str, name: str, **more: str) -> None:
    write_package(site, package, SAMPLER.format(name=name), **more)


def plugin_file(folder: Path, code: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(dedent(code), encoding="utf-8")
    return path


# --- discovery ---------------------------------------------------------------------------------------------


def test_what_ea_runtime_brings_is_there_without_any_package() -> None:
    host = Host(entry_points=False)
    assert list(host.plugins) == ["ea-runtime"]
    assert {"euler", "euler-a", "dpm++", "pndm", "ddim", "unipc"} <= host.records("samplers").keys()
    assert {"generate", "models", "plugins", "train"} <= host.records("commands").keys()
    assert all(host.records(kind) == {} for kind in ("splitters", "scorers", "filters", "captioners"))


def test_an_installed_package_is_found_with_its_name_and_version(site: Path) -> None:
    sampler_package(site, "fast-samplers", "fast", plugin="fast", version="2.3")
    host = Host()
    entry = host.records("samplers")["fast"]
    assert (entry.plugin, entry.package, entry.version, entry.kind) == (
        "fast",
        "fast-samplers",
        "2.3",
        "samplers",
    )
    assert host.get("samplers", "fast") is entry.record
    assert host.plugins["fast"].entries == [entry]
    assert host.plugins["fast"].state == "ok"


def test_an_object_can_be_the_plugin(site: Path) -> None:
    code = """
    from ea_runtime.hookspecs import hookimpl
    from ea_runtime.records import SamplerRecord

    class Plugin:
        @hookimpl
        def ea_samplers(self):
            return [SamplerRecord("fast", "for a test", lambda **config: None)]

    plugin = Plugin()
    """
    write_package(site, "fast-samplers", code, target="fast_samplers:plugin")
    assert "fast" in Host().records("samplers")


def test_listing_builds_nothing(site: Path) -> None:
    code = SAMPLER.format(name="fast").replace("lambda **config: None", "lambda **config: 1 / 0")
    write_package(site, "fast-samplers", code)
    with pytest.raises(ZeroDivisionError):
        Host().get("samplers", "fast").build()


def test_a_package_listed_twice_on_the_path_counts_once(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    sampler_package(other, "fast-samplers", "fast", version="1.0")
    sampler_package(site, "fast-samplers", "fast", version="2.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    host = Host()
    assert host.clashes() == {}
    assert host.records("samplers")["fast"].version == "2.0"


def test_damaged_metadata_of_a_package_hides_no_other(site: Path) -> None:
    sampler_package(site, "fast-samplers", "fast")
    for name, text in (("bad_one", "[ea\nnonsense"), ("bad_two", "\xff\xfe"), ("bad_three", "[ea]\n= =\n")):
        folder = site / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "entry_points.txt").write_text(text, encoding="latin-1")
    assert "fast" in Host().records("samplers")


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"no sampler is called 'eular'; there are: euler, .*; did you mean 'euler'\?"
    ):
        Host(entry_points=False).get("samplers", "eular")
    with pytest.raises(UserError, match="no VAE is called 'x'; there are: none is installed"):
        Host(entry_points=False).get("vaes", "x")
    with pytest.raises(UserError, match=r"`kind` must be one of samplers.*did you mean 'samplers'"):
        Host(entry_points=False).records("sampler")


def test_what_another_package_of_the_project_brings_names_that_package(site: Path) -> None:
    with pytest.raises(
        MissingPackageError, match=r"the VAE 'magvit' comes with ea-vae; run `pip install ea-vae`"
    ):
        Host(entry_points=False).get("vaes", "magvit")
    with pytest.raises(MissingPackageError, match=r"installed, but blocked: see `ea plugins`"):
        Host(block=["ea-vae"]).get("vaes", "magvit")


@pytest.mark.parametrize(
    ("kind", "name", "package", "word"),
    [
        ("vaes", "magvit", "ea-vae", "VAE"),
        ("recipes", "vae", "ea-vae", "recipe"),
        ("denoisers", "transformer3d", "ea-dit", "denoiser"),
        ("recipes", "dit", "ea-dit", "recipe"),
        ("recipes", "text", "ea-data", "recipe"),
        ("metrics", "adherence", "ea-data", "metric"),
        ("metrics", "warping", "ea-data", "metric"),
        ("metrics", "aesthetic", "ea-data", "metric"),
        ("commands", "data", "ea-data", "command"),
        ("commands", "lora", "ea-lora", "command"),
    ],
)
def test_each_part_of_the_project_has_a_home(kind: str, name: str, package: str, word: str) -> None:
    with pytest.raises(
        MissingPackageError, match=f"the {word} '{name}' comes with {package}; run `pip install"
    ):
        Host(entry_points=False).get(kind, name)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text_encoders", "no text encoder is called 'x'; there are: "),
        ("step_caches", "no step cache is called 'x'; there are: "),
    ],
)
def test_a_kind_has_its_word(kind: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Host(entry_points=False).get(kind, "x")


def test_commands_are_listed_by_name_as_in_help() -> None:
    class Late:
        @hookimpl
        def ea_commands(self) -> list[CommandRecord]:
            return [CommandRecord("abc", "for a test", lambda: None)]

    with (
        host_with(Late()) as host,
        pytest.raises(UserError, match="no command is called 'x'; there are: abc, bench, "),
    ):
        host.get("commands", "x")


def test_a_broken_package_of_the_project_need_not_be_installed_again() -> None:
    host = Host(entry_points=False)
    info = host.plugins["magvit"] = PluginInfo("magvit", "ea-vae", "1.0")
    assert host.remedy("ea-vae") == "run `pip install ea-vae`"  # it is fine, and has no such part
    info.state = "broken: ImportError: libx"
    assert host.remedy("ea-vae") == "it is installed, but broken: see `ea plugins`"
    assert host.remedy("ea-dit") == "run `pip install ea-dit`"


# --- leaving plugins out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("blocked", ["fast", "fast-samplers", "Fast_Samplers", "other, fast"])
def test_the_blocklist_takes_plugin_and_package_names(
    site: Path, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    code = 'raise RuntimeError("a blocked plugin must not even be imported")'
    write_package(site, "fast-samplers", code, plugin="fast")
    monkeypatch.setenv("EA_PLUGINS_BLOCK", blocked)
    host = make_host()
    assert host.plugins["fast"].state == "blocked"
    assert host.unknown_blocks == (["other"] if "other" in blocked else [])


@pytest.mark.parametrize(
    ("value", "is_loaded"),
    [("1", False), ("true", False), *((word, True) for word in ("0", "", " ", "false", "No", " OFF "))],
)
def test_ea_no_plugins_leaves_out_installed_packages(
    site: Path, monkeypatch: pytest.MonkeyPatch, value: str, is_loaded: bool
) -> None:
    sampler_package(site, "fast-samplers", "fast")
    monkeypatch.setenv("EA_NO_PLUGINS", value)
    assert ("fast" in make_host().records("samplers")) is is_loaded


def test_what_is_asked_for_in_the_program_comes_before_the_environment(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler_package(site, "fast-samplers", "fast")
    monkeypatch.setenv("EA_NO_PLUGINS", "1")
    assert "fast" in make_host(entry_points=True).records("samplers")
    monkeypatch.setenv("EA_NO_PLUGINS", "")
    assert "fast" not in make_host(entry_points=False).records("samplers")
    monkeypatch.delenv("EA_NO_PLUGINS")
    assert "fast" in make_host().records("samplers")


def test_names_in_the_blocklist_that_nobody_has(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt name would leave a plugin in; without installed packages there is nothing to compare with."""
    sampler_package(site, "fast-samplers", "fast", plugin="fast")
    monkeypatch.setenv("EA_PLUGINS_BLOCK", "a.b_c, ,fast,Fast.Samplers")
    assert make_host().unknown_blocks == ["a.b_c"]
    assert make_host(entry_points=False).unknown_blocks == []
    assert Host().unknown_blocks == []
    # a blocked one has no records, and others of its package's name stay
    sampler_package(site, "quick-samplers", "quick", plugin="quick")
    host = make_host()
    assert ("fast" in host.records("samplers"), "quick" in host.records("samplers")) == (False, True)
    assert host.plugins["fast"].entries == []


def test_files_are_loaded_without_installed_packages_too(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler_package(site, "fast-samplers", "fast")
    monkeypatch.setenv("EA_NO_PLUGINS", "1")
    host = make_host([plugin_file(site, SAMPLER.format(name="local"))])
    assert "local" in host.records("samplers")
    assert "fast" not in host.records("samplers")


# --- local files -------------------------------------------------------------------------------------------


def test_a_file_is_named_after_itself_and_may_be_given_twice(tmp_path: Path) -> None:
    path = plugin_file(tmp_path, SAMPLER.format(name="local"))
    host = Host(files=[path, path], entry_points=False)
    entry = host.records("samplers")["local"]
    assert (entry.plugin, entry.package, entry.version) == ("mine", "mine.py", "file")
    assert host.files == [path.resolve()]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def ea_samplers(:\n", r"plugin file mine.py, line 1: .*; mend it or leave out --plugin"),
        ("x = 1\nraise KeyError('gone')\n", "plugin file mine.py: KeyError: 'gone'"),
        ("import sys\nsys.exit(7)\n", r"plugin file mine.py: it called exit\(7\)"),
        ("import nothing_of_that_name\n", "plugin file mine.py: ModuleNotFoundError"),
        ("x = 1\n", "plugin file mine.py: it has no hook"),
        (
            SAMPLER.format(name="euler"),
            "it brings the sampler 'euler', which package ea-runtime .* brings too",
        ),
        (SAMPLER.replace("@hookimpl", "").format(name="x"), "its ea_samplers lacks @hookimpl"),
    ],
)
def test_a_fault_in_a_file_is_one_line_for_its_author(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Host(files=[plugin_file(tmp_path, code)], entry_points=False)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_a_folder_and_another_suffix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which is not there"):
        Host(files=[tmp_path / "none.py"], entry_points=False)
    with pytest.raises(UserError, match="which is a folder"):
        Host(files=[tmp_path], entry_points=False)
    with pytest.raises(UserError, match=r"must be a Python file \(.py\)"):
        Host(files=[plugin_file(tmp_path, "x = 1", "mine.txt")], entry_points=False)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    first = plugin_file(tmp_path, SAMPLER.format(name="one"))
    (tmp_path / "b").mkdir()
    second = plugin_file(tmp_path / "b", SAMPLER.format(name="two"))
    with pytest.raises(UserError, match="a plugin called 'mine' is already loaded; rename the file"):
        Host(files=[first, second], entry_points=False)


def test_files_of_one_folder_are_listed_in_order_and_leave_nothing_if_broken(tmp_path: Path) -> None:
    paths = [plugin_file(tmp_path, SAMPLER.format(name=name), f"{name}.py") for name in ("b", "a")]
    host = Host(files=paths, entry_points=False)
    assert host.files == sorted(path.resolve() for path in paths)
    with pytest.raises(UserError, match=r"plugin file c\.py: it called exit"):
        Host(files=[plugin_file(tmp_path, "exit(3)", "c.py")], entry_points=False)
    assert not [name for name in sys.modules if name.startswith("ea_local_c_")]
    loaded = [name for name in sys.modules if name.startswith("ea_local_b_")]
    assert [len(name) for name in loaded] == [len("ea_local_b_") + 8]
    del (
        sys.modules[loaded[0]],
        sys.modules[next(name for name in sys.modules if name.startswith("ea_local_a_"))],
    )


def test_a_fault_in_a_file_takes_nothing_of_it(tmp_path: Path) -> None:
    two = "    return [SamplerRecord('x', 'for a test', lambda **config: None), 7]"
    code = SAMPLER.format(name="x").rpartition("    return")[0] + two
    host = Host(entry_points=False)
    before = {kind: list(host.records(kind)) for kind in KINDS}
    with pytest.raises(UserError, match=r"plugin file mine\.py"):
        host._load_file(plugin_file(tmp_path, code))
    assert {kind: list(host.records(kind)) for kind in KINDS} == before
    assert host.files == []
    assert list(host.plugins) == ["ea-runtime"]


# --- one name, two plugins ---------------------------------------------------------------------------------


def test_two_records_of_one_name_fail_only_when_that_name_is_wanted(site: Path) -> None:
    sampler_package(site, "fast-samplers", "fast", version="1.5")
    sampler_package(site, "quick-samplers", "fast", version="0.2")
    host = Host()
    with pytest.raises(UserError) as caught:
        host.get("samplers", "fast")
    assert "package fast-samplers 1.5" in str(caught.value)
    assert "package quick-samplers 0.2" in str(caught.value)
    assert "EA_PLUGINS_BLOCK=quick-samplers" in str(caught.value)
    assert "fast" not in host.records("samplers")
    assert host.get("samplers", "euler").name == "euler"
    assert host.get("commands", "generate").name == "generate"
    assert list(host.clashes()) == [("samplers", "fast")]
    assert Host(block=["quick-samplers"]).records("samplers")["fast"].package == "fast-samplers"


def test_three_records_of_one_name_and_those_of_one_kind(site: Path) -> None:
    for package in ("a-samplers", "b-samplers", "c-samplers"):
        sampler_package(site, package, "fast")
    host = Host()
    (line,) = host.clashes().values()
    assert line.startswith("3 plugins bring the sampler 'fast': a-samplers (package a-samplers ")
    assert line.endswith("; leave one out, for example with EA_PLUGINS_BLOCK=c-samplers")
    assert host.clashes("samplers") == host.clashes()
    assert host.clashes("vaes") == {}


def test_nothing_of_ours_can_be_replaced_silently(site: Path) -> None:
    sampler_package(site, "fast-samplers", "euler")
    with pytest.raises(
        UserError, match=r"two plugins bring the sampler 'euler': ea-runtime .* and fast-samplers"
    ):
        Host().get("samplers", "euler")


def test_two_entry_points_of_one_name_are_both_loaded(site: Path) -> None:
    sampler_package(site, "fast-samplers", "fast", plugin="samplers")
    sampler_package(site, "quick-samplers", "quick", plugin="samplers")
    host = Host()
    assert {"fast", "quick"} <= host.records("samplers").keys()
    assert {"samplers", "samplers (quick-samplers)"} <= host.plugins.keys()


def test_two_vaes_of_one_class_name_are_an_error_that_names_both() -> None:
    class First:
        @hookimpl
        def ea_vaes(self) -> list[VaeRecord]:
            return [VaeRecord("first", "for a test", lambda: First, class_names=("AutoencoderX", "Only"))]

    class Second:
        @hookimpl
        def ea_vaes(self) -> list[VaeRecord]:
            return [VaeRecord("second", "for a test", lambda: Second, class_names=("AutoencoderX",))]

    with host_with(First(), Second()) as host:
        assert host.find_class("vaes", "Nothing") is None
        record = host.find_class("vaes", "Only")
        assert record is not None
        assert record.name == "first"
        with pytest.raises(
            UserError, match=r"two plugins load the class 'AutoencoderX': under-test .* and under-"
        ):
            host.find_class("vaes", "AutoencoderX")


# --- the process's host ------------------------------------------------------------------------------------


def test_get_host_makes_one_host_and_host_with_puts_it_back(site: Path) -> None:
    class Mine:
        @hookimpl
        def ea_samplers(self) -> list[SamplerRecord]:
            return [SamplerRecord("mine", "for a test", lambda **config: None)]

    set_host(None)
    first = get_host()
    assert get_host() is first
    with host_with(Mine()) as host:
        assert get_host() is host
        assert [info.name for info in list_plugins()] == ["ea-runtime", "under-test"]
    assert get_host() is first
    set_host(None)


def test_host_with_says_why_a_plugin_is_broken() -> None:
    class Misspelt:
        @hookimpl
        def ea_sampler(self) -> list[SamplerRecord]:
            return []

    with pytest.raises(discovery.PluginFault, match="no hook 'ea_sampler'; did you mean 'ea_samplers'"):
        host_with(Misspelt()).__enter__()


def test_a_slow_plugin_is_named_while_everything_waits(
    site: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(discovery, "PATIENCE", 0.05)
    write_package(site, "slow-samplers", "import time\ntime.sleep(0.4)\n" + SAMPLER.format(name="slow"))
    with caplog.at_level(logging.WARNING, logger="ea"):
        host = Host()
    assert any("waiting for plugin slow-samplers" in message for message in caplog.messages)
    assert host.plugins["slow-samplers"].seconds >= 0.4
    assert "slow" in host.records("samplers")


def test_ctrl_c_while_a_plugin_loads_stops_the_program_and_names_it(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_package(site, "endless", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Host()
    assert any("stopped while plugin endless" in message for message in caplog.messages)


def test_every_kind_has_a_hook_and_a_record_class() -> None:
    assert len(KINDS) == 16
    assert all(hook == f"ea_{kind}" for kind, (hook, _) in KINDS.items())
