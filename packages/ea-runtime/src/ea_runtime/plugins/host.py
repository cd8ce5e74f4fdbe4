"""Finding plugins, asking them for their records, and surviving those that are broken.

Three sources, loaded in this order: what ea_runtime ships, entry points of group `ea`, local files
(`--plugin FILE.py`). `EA_PLUGINS_BLOCK=a,b` leaves plugins out by their name or their package's;
`EA_NO_PLUGINS=1` (or `--no-plugins`) leaves out all but ours and those given as files.

A plugin is taken whole or not at all. If two records have one kind and name, asking for that name is an error
that names both packages; everything else works.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version as installed_version
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from ea_runtime import hookspecs
from ea_runtime.errors import MissingPackageError, UserError, nearest
from ea_runtime.hookspecs import KINDS
from ea_runtime.plugins.discovery import PluginFault, entry_points_of_group, read_hooks, watched
from ea_runtime.plugins.entries import Entry, PluginInfo
from ea_runtime.records import Record

logger = logging.getLogger("ea")

GROUP = "ea"
#: The plugin of ea_runtime, loaded by name: it imports everything, and everything asks the host.
BUILTIN = ("ea_runtime.plugin",)
_SINGULAR = {"vaes": "VAE", "text_encoders": "text encoder", "step_caches": "step cache"}
#: Records of the project's other packages, so that an error can say which one to install.
_HOMES = {
    ("vaes", "magvit"): "ea-vae",
    ("recipes", "vae"): "ea-vae",
    ("denoisers", "transformer3d"): "ea-dit",
    ("recipes", "dit"): "ea-dit",
    ("recipes", "text"): "ea-data",
    ("metrics", "adherence"): "ea-data",
    ("metrics", "warping"): "ea-data",
    ("metrics", "aesthetic"): "ea-data",
    ("commands", "data"): "ea-data",
    ("commands", "lora"): "ea-lora",
}


class Host:
    """The plugins of this process and their records by kind and name.

    files: local plugin files; a fault in one raises UserError. entry_points: whether installed packages are
    asked. block: names of plugins or packages to leave out.
    """

    def __init__(
        self, *, files: Iterable[str | Path] = (), entry_points: bool = True, block: Iterable[str] = ()
    ) -> None:
        self._manager = pluggy.PluginManager("ea")
        self._manager.add_hookspecs(hookspecs)
        self._block = {_canonical(name): name for name in block}
        self._claims: dict[str, dict[str, list[Entry]]] = {kind: {} for kind in KINDS}
        self._paths: set[Path] = set()
        self.plugins: dict[str, PluginInfo] = {}
        #: names in the blocklist that no installed plugin has
        self.unknown_blocks: list[str] = []

        for module in BUILTIN:
            self.add(import_module(module), "ea-runtime", "ea-runtime", installed_version("ea-runtime"))
        used = set()
        if entry_points:
            for point, package, version in entry_points_of_group(GROUP):
                names = {_canonical(point.name), _canonical(package)}
                used |= names
                self._load_entry_point(point, package, version, is_blocked=bool(names & self._block.keys()))
            self.unknown_blocks = [name for key, name in self._block.items() if key not in used]
        for file in files:
            self._load_file(Path(file))

    def records(self, kind: str) -> dict[str, Entry]:
        """The entries of a kind ("samplers", "vaes", ...) by name, in the order they were found.

        A name that two plugins claim is not among them: `get` says why.
        """
        return {name: entries[0] for name, entries in self._of_kind(kind).items() if len(entries) == 1}

    def get(self, kind: str, name: str) -> Record:
        """The record of that kind and name.

        Raises UserError that lists the names there are, or the packages that both claim this one;
        MissingPackageError where a package of this project brings it.
        """
        claims = self._of_kind(kind)
        if name in claims:
            if len(claims[name]) > 1:
                raise UserError(_clash(claims[name]))
            return claims[name][0].record
        package = _HOMES.get((kind, name))
        if package is not None:
            raise MissingPackageError(
                f"the {_singular(kind)} {name!r} comes with {package}; {self.remedy(package)}"
            )
        known = ", ".join(sorted(claims) if kind == "commands" else claims) or "none is installed"
        raise UserError(f"no {_singular(kind)} is called {name!r}; there are: {known}{nearest(name, claims)}")

    def remedy(self, package: str) -> str:
        """The remedy for a package whose parts are missing: install it, or see why they were left out."""
        for info in self.plugins.values():
            if info.package == package and info.state != "ok":
                return f"it is installed, but {info.state.partition(':')[0]}: see `ea plugins`"
        return f"run `pip install {package}`"

    def find_class(self, kind: str, class_name: str) -> Record | None:
        """The VAE, denoiser or text encoder record that loads a `_class_name`, or None.

        Raises UserError where two plugins claim the class, or the name of the one that does.
        """
        claims = self._of_kind(kind)
        entries = [entry for claimants in claims.values() for entry in claimants]
        found = [entry for entry in entries if class_name in getattr(entry.record, "class_names", ())]
        if not found:
            return None
        if len(found) > 1:
            raise UserError(_clash(found, f"load the class {class_name!r}"))
        return self.get(kind, found[0].record.name)

    @property
    def files(self) -> list[Path]:
        """The local plugin files that are loaded, for a process that is to have the same plugins."""
        return sorted(self._paths)

    def clashes(self, kind: str | None = None) -> dict[tuple[str, str], str]:
        """(kind, name) -> one line, for each name that several plugins claim."""
        return {
            (of, name): _clash(entries)
            for of, claims in self._claims.items()
            for name, entries in claims.items()
            if len(entries) > 1 and kind in (None, of)
        }

    def add(self, plugin: Any, name: str, package: str, version: str) -> None:
        """Takes the records of one plugin object or module.

        Raises PluginFault where it is broken; then nothing of it is taken.
        """
        info = PluginInfo(name, package, version)
        with watched(info):
            records = read_hooks(self._manager, plugin, name)
        info.entries = [Entry(record, kind, name, package, version) for kind, record in records]
        self.plugins[name] = info
        for entry in info.entries:
            self._claims[entry.kind].setdefault(entry.record.name, []).append(entry)

    def _load_entry_point(self, point: Any, package: str, version: str, *, is_blocked: bool) -> None:
        # pluggy would drop the second of two plugins of one name without a word
        name = point.name if point.name not in self.plugins else f"{point.name} ({package})"
        info = PluginInfo(name, package, version)
        if is_blocked:
            info.state = "blocked"
            self.plugins[name] = info
            return
        try:
            with watched(info):
                module = point.load()
            self.add(module, name, package, version)
            self.plugins[name].seconds += info.seconds
        except PluginFault as fault:
            info.state = f"broken: {fault}"
            self.plugins[name] = info
            logger.warning("plugin %s (package %s) is left out: %s", name, package, fault)

    def _load_file(self, path: Path) -> None:
        """A local plugin file. Its faults are the user's to mend now, so they raise."""
        if path.is_dir() or not path.exists():
            wrong = "which is a folder" if path.is_dir() else "which is not there"
            raise UserError(f"`--plugin` must be a Python file, got {str(path)!r}, {wrong}")
        path = path.resolve()
        if path in self._paths:
            return
        if path.stem in self.plugins:
            raise UserError(
                f"plugin file {path.name}: a plugin called {path.stem!r} is already loaded; rename the file"
            )
        info = PluginInfo(path.stem, path.name, "file")
        module = _module_of(path)
        sys.modules[module.__name__] = module
        try:
            with watched(info):
                _execute(module)
            self.add(module, info.name, info.package, info.version)
        except PluginFault as fault:
            del sys.modules[module.__name__]
            cause = fault.__cause__
            if isinstance(cause, SyntaxError):
                where = f"plugin file {path.name}, line {cause.lineno}"
                raise UserError(f"{where}: {cause.msg}; mend it or leave out --plugin") from cause
            raise UserError(f"plugin file {path.name}: {fault}") from cause
        self._paths.add(path)
        for entry in self.plugins[info.name].entries:
            others = self._claims[entry.kind][entry.record.name]
            if len(others) > 1:
                what, other = _singular(entry.kind), others[0]
                raise UserError(
                    f"plugin file {path.name}: it brings the {what} {entry.record.name!r}, which package "
                    f"{other.package} {other.version} brings too; give yours another name"
                )

    def _of_kind(self, kind: str) -> dict[str, list[Entry]]:
        if kind not in KINDS:
            raise UserError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}{nearest(kind, KINDS)}")
        return self._claims[kind]


_host: Host | None = None


def get_host() -> Host:
    """The process's host; made at the first call from the environment."""
    global _host
    if _host is None:
        _host = make_host()
    return _host


def make_host(files: Iterable[str | Path] = (), *, entry_points: bool | None = None) -> Host:
    """A host from the environment (EA_NO_PLUGINS, EA_PLUGINS_BLOCK) and local files."""
    if entry_points is None:
        entry_points = os.environ.get("EA_NO_PLUGINS", "").strip().lower() in ("", "0", "false", "no", "off")
    block = [name.strip() for name in os.environ.get("EA_PLUGINS_BLOCK", "").split(",") if name.strip()]
    return Host(files=files, entry_points=entry_points, block=block)


def set_host(host: Host | None) -> None:
    """Replaces the process's host; None makes the next get_host() build a new one."""
    global _host
    _host = host


def list_plugins() -> list[PluginInfo]:
    """Every plugin that was found, with its records and state."""
    return list(get_host().plugins.values())


def _clash(entries: list[Entry], what: str | None = None) -> str:
    first = entries[0]
    count = "two" if len(entries) == 2 else str(len(entries))
    what = what or f"bring the {_singular(first.kind)} {first.record.name!r}"
    who = " and ".join(f"{e.plugin} (package {e.package} {e.version})" for e in entries)
    remedy = f"leave one out, for example with EA_PLUGINS_BLOCK={entries[-1].plugin}"
    return f"{count} plugins {what}: {who}; {remedy}"


def _module_of(path: Path) -> ModuleType:
    """An empty module for a file; its name is the file's and unique to its place."""
    from hashlib import sha256

    tag = sha256(str(path).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"ea_local_{path.stem}_{tag}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"`--plugin` must be a Python file (.py), got {str(path)!r}")
    return importlib.util.module_from_spec(spec)


def _execute(module: ModuleType) -> None:
    assert module.__spec__ is not None
    assert module.__spec__.loader is not None
    module.__spec__.loader.exec_module(module)


def _singular(kind: str) -> str:
    return _SINGULAR.get(kind, kind.removesuffix("s"))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
