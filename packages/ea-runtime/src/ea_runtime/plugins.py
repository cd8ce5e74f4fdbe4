"""Finding plugins, asking them for their records, and surviving those that are broken.

Three sources, loaded in this order: what ea_runtime ships, entry points of group `ea`, local files
(`--plugin FILE.py`). `EA_PLUGINS_BLOCK=a,b` leaves plugins out by name; `EA_NO_PLUGINS=1` (or
`--no-plugins`) leaves out all but ours and those given as files.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from typing import Any

import pluggy

from ea_runtime import hookspecs
from ea_runtime.errors import UserError, nearest
from ea_runtime.hookspecs import KINDS
from ea_runtime.records import Record

logger = logging.getLogger("ea")

GROUP = "ea"
_SINGULAR = {"vaes": "VAE", "text_encoders": "text encoder"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A record and where it came from."""

    record: Record
    kind: str
    plugin: str
    package: str
    version: str


@dataclass(slots=True)
class PluginInfo:
    """One plugin as `ea plugins` shows it. `state`: "ok", "blocked", or "broken: <one line>"."""

    name: str
    package: str
    version: str
    state: str = "ok"
    entries: list[Entry] = field(default_factory=list)


class Host:
    """The plugins of this process and their records by kind and name."""

    def __init__(
        self, *, files: Iterable[str | Path] = (), entry_points: bool = True, block: Iterable[str] = ()
    ) -> None:
        self._manager = pluggy.PluginManager("ea")
        self._manager.add_hookspecs(hookspecs)
        self._block = frozenset(block)
        self._entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}
        self._clashes: dict[tuple[str, str], str] = {}
        self.plugins: dict[str, PluginInfo] = {}

        from ea_runtime import builtin

        self._add(builtin, "ea-runtime", "ea-runtime", _own_version())
        if entry_points:
            for point, package, version in _entry_points():
                self._load_entry_point(point, package, version)
        for file in files:
            self._load_file(Path(file))

    def records(self, kind: str) -> dict[str, Entry]:
        """The entries of a kind ("samplers", "vaes", ...) by name, in the order they were found."""
        if kind not in KINDS:
            raise UserError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}{nearest(kind, KINDS)}")
        for (clash_kind, _), message in self._clashes.items():
            if clash_kind == kind:
                raise UserError(message)
        return self._entries[kind]

    def get(self, kind: str, name: str) -> Record:
        """The record of that kind and name. Raises UserError listing the names that exist."""
        entries = self.records(kind)
        if name in entries:
            return entries[name].record
        what = _SINGULAR.get(kind, kind.rstrip("s"))
        known = ", ".join(entries) or "none is installed"
        raise UserError(f"no {what} is called {name!r}; there are: {known}{nearest(name, entries)}")

    def find_class(self, kind: str, class_name: str) -> Record | None:
        """The VAE, denoiser or text encoder record that loads a `_class_name`, or None."""
        for entry in self.records(kind).values():
            if class_name in getattr(entry.record, "class_names", ()):
                return entry.record
        return None

    def clashes(self) -> list[str]:
        """One line for each name that two plugins claim."""
        return list(self._clashes.values())

    def _load_entry_point(self, point: EntryPoint, package: str, version: str) -> None:
        name = point.name
        if name in self.plugins:
            taken = self.plugins[name]
            # pluggy would drop the second one without a word
            key = f"{name} ({package})"
            reason = f"its entry point {name!r} is also one of {taken.package}; rename one or block it"
            self._broken(key, package, version, reason)
            return
        if name in self._block or package in self._block:
            self.plugins[name] = PluginInfo(name, package, version, state="blocked")
            return
        try:
            module = point.load()
        except Exception as error:
            self._broken(name, package, version, _one_line(error))
            return
        except SystemExit as error:
            self._broken(name, package, version, f"it called exit({error.code}) while being imported")
            return
        self._add(module, name, package, version)

    def _load_file(self, path: Path) -> None:
        """A local plugin file. Its faults are the user's to mend now, so they raise."""
        if not path.is_file():
            raise UserError(f"`--plugin` must be a Python file, got {str(path)!r}, which is not there")
        path = path.resolve()
        tag = hashlib.sha256(str(path).encode()).hexdigest()[:8]
        module_name = f"ea_local_{path.stem}_{tag}"
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise UserError(f"`--plugin` must be a Python file (.py), got {str(path)!r}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            del sys.modules[module_name]
            raise UserError(
                f"plugin file {path.name}, line {error.lineno}: {error.msg}; mend it or leave out --plugin"
            ) from error
        except Exception as error:
            del sys.modules[module_name]
            raise UserError(f"plugin file {path.name} failed while being imported: {_one_line(error)}") from error
        name = path.stem
        if name in self.plugins:
            raise UserError(f"plugin file {path.name}: a plugin called {name!r} is already loaded; rename the file")
        self._add(module, name, str(path.name), "file")
        state = self.plugins[name].state
        if state != "ok":
            raise UserError(f"plugin file {path.name}: {state.removeprefix('broken: ')}")

    def _add(self, module: Any, name: str, package: str, version: str) -> None:
        info = PluginInfo(name, package, version)
        self.plugins[name] = info
        misspelt = [a for a in dir(module) if a.startswith("ea_") and _is_hook(module, a) and not _is_spec(a)]
        if misspelt:
            known = [spec for spec, _ in KINDS.values()]
            self._broken(name, package, version, f"it has no known hook {misspelt[0]!r}{nearest(misspelt[0], known)}")
            return
        try:
            self._manager.register(module, name=name)
        except (ValueError, pluggy.PluginValidationError) as error:
            self._broken(name, package, version, _one_line(error))
            return
        for kind, (hook, record_type) in KINDS.items():
            implementations = [i for i in getattr(self._manager.hook, hook).get_hookimpls() if i.plugin is module]
            for implementation in implementations:
                try:
                    records = implementation.function()
                    self._collect(kind, record_type, records, info)
                except Exception as error:
                    self._forget(name)
                    self._broken(name, package, version, f"{hook}: {_one_line(error)}")
                    return

    def _collect(self, kind: str, record_type: type[Record], records: Any, info: PluginInfo) -> None:
        if not isinstance(records, (list, tuple)):
            raise TypeError(f"must return a list of {record_type.__name__}, got {type(records).__name__}")
        for record in records:
            if not isinstance(record, record_type):
                raise TypeError(f"must return {record_type.__name__}s, got a {type(record).__name__}")
            entry = Entry(record, kind, info.name, info.package, info.version)
            other = self._entries[kind].get(record.name)
            if other is not None:
                what = _SINGULAR.get(kind, kind.rstrip("s"))
                self._clashes[(kind, record.name)] = (
                    f"two plugins bring a {what} called {record.name!r}: {other.plugin} (package {other.package}) "
                    f"and {info.name} (package {info.package}); block one with EA_PLUGINS_BLOCK={info.name}"
                )
                info.state = f"broken: {record.name!r} is also a {what} of {other.plugin}"
                continue
            self._entries[kind][record.name] = entry
            info.entries.append(entry)

    def _forget(self, plugin: str) -> None:
        for entries in self._entries.values():
            for name in [n for n, e in entries.items() if e.plugin == plugin]:
                del entries[name]

    def _broken(self, name: str, package: str, version: str, reason: str) -> None:
        self.plugins[name] = PluginInfo(name, package, version, state=f"broken: {reason}")
        logger.warning("plugin %s (package %s) is left out: %s", name, package, reason)


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
        entry_points = os.environ.get("EA_NO_PLUGINS", "") not in ("1", "true", "yes")
    block = [name.strip() for name in os.environ.get("EA_PLUGINS_BLOCK", "").split(",") if name.strip()]
    return Host(files=files, entry_points=entry_points, block=block)


def set_host(host: Host | None) -> None:
    """Replaces the process's host; None makes the next get_host() build a new one."""
    global _host
    _host = host


def list_plugins() -> list[PluginInfo]:
    """Every plugin that was found, with its records and state."""
    return list(get_host().plugins.values())


def _entry_points() -> list[tuple[EntryPoint, str, str]]:
    found: dict[tuple[str, str], tuple[EntryPoint, str, str]] = {}
    for distribution in distributions():
        package = distribution.metadata["Name"]
        for point in distribution.entry_points:
            if point.group == GROUP:
                # an editable install can be listed twice; the first on sys.path wins
                found.setdefault((package, point.name), (point, package, distribution.version))
    return sorted(found.values(), key=lambda item: (item[1], item[0].name))


def _is_hook(module: Any, attribute: str) -> bool:
    return hasattr(getattr(module, attribute, None), "ea_impl")


def _is_spec(attribute: str) -> bool:
    return any(attribute == hook for hook, _ in KINDS.values())


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _own_version() -> str:
    from ea_runtime import __version__

    return __version__
