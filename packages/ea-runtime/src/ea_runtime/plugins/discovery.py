"""Finding, importing and asking one plugin. Every way it can fail becomes a PluginFault."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import Distribution, EntryPoint, distributions
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from ea_runtime.errors import nearest
from ea_runtime.hookspecs import KINDS
from ea_runtime.records import Record

if TYPE_CHECKING:
    from ea_runtime.plugins.entries import PluginInfo

logger = logging.getLogger("ea")

#: Seconds after which the wait for a plugin is reported.
PATIENCE = 3.0
_LONGEST_REASON = 300
_HOOKS = tuple(hook for hook, _ in KINDS.values())


class PluginFault(Exception):
    """A plugin is broken; the message is one line. Its `__cause__` is what the plugin raised, if it did."""


def entry_points_of_group(group: str) -> list[tuple[EntryPoint, str, str]]:
    """(entry point, package, version) of the installed packages, sorted by package and name.

    Only the packages that have one are looked into, and one with damaged metadata is skipped.
    """
    found: dict[tuple[str, str], tuple[EntryPoint, str, str]] = {}
    for distribution in distributions():
        try:
            points = [point for point in distribution.entry_points if point.group == group]
        except Exception as error:
            logger.debug("entry points of %s cannot be read: %s", distribution, error)
            continue
        for point in points:
            package, version = _identity(distribution)
            # an editable install can be listed twice; the first on sys.path wins
            found.setdefault((package, point.name), (point, package, version))
    return sorted(found.values(), key=lambda item: (item[1], item[0].name))


def read_hooks(manager: pluggy.PluginManager, plugin: Any, name: str) -> list[tuple[str, Record]]:
    """Registers a plugin and returns (kind, record) of its hooks. After a PluginFault nothing is registered."""
    _check_names(plugin)
    if manager.register(plugin, name=name) is None:
        raise PluginFault("it was blocked by another plugin")
    try:
        records = []
        num_hooks = 0
        for kind, (hook, record_type) in KINDS.items():
            for implementation in getattr(manager.hook, hook).get_hookimpls():
                if implementation.plugin is plugin:
                    num_hooks += 1
                    records += [(kind, r) for r in _ask(implementation.function, hook, record_type)]
        if not num_hooks:
            raise PluginFault("it has no hook; docs/hooks.md shows one of each")
        _check_unique(records)
    except BaseException:
        manager.unregister(plugin)
        raise
    return records


@contextmanager
def watched(info: PluginInfo) -> Iterator[None]:
    """Around a plugin's code: measures it, keeps it off stdout, turns what it raises into a PluginFault."""
    timer = threading.Timer(PATIENCE, _tell, [info])
    timer.daemon = True
    timer.start()
    start = time.perf_counter()
    try:
        # what a plugin prints must not end up in `--json`
        with redirect_stdout(sys.stderr):
            yield
    except PluginFault:
        raise
    except KeyboardInterrupt:
        logger.warning("stopped while plugin %s (package %s) was being loaded", info.name, info.package)
        raise
    except SystemExit as error:
        raise PluginFault(f"it called exit({'' if error.code is None else error.code})") from error
    # also what does not derive from Exception: one plugin must never take the program down
    except BaseException as error:
        raise PluginFault(one_line(error)) from error
    finally:
        timer.cancel()
        info.seconds += time.perf_counter() - start


def one_line(error: BaseException) -> str:
    """ "ValueError: what it says", cut at 300 characters."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 1] + "…"


def _ask(function: Any, hook: str, record_type: type[Record]) -> list[Record]:
    try:
        records = function()
    except Exception as error:
        raise PluginFault(f"{hook}: {one_line(error)}") from error
    if not isinstance(records, (list, tuple)):
        raise PluginFault(
            f"{hook} must return a list of {record_type.__name__}, got {type(records).__name__}"
        )
    for record in records:
        if not isinstance(record, record_type):
            raise PluginFault(f"{hook} must return {record_type.__name__}s, got a {type(record).__name__}")
    return list(records)


def _check_names(plugin: Any) -> None:
    """Raises if a hook is misspelt or lacks its marker, since it would be silently ignored."""
    for attribute in (a for a in dir(plugin) if a.startswith("ea_")):
        value = getattr(plugin, attribute)
        is_marked = hasattr(value, "ea_impl")
        if is_marked and attribute not in _HOOKS:
            raise PluginFault(f"there is no hook {attribute!r}{nearest(attribute, _HOOKS)}")
        is_ours = isinstance(value, ModuleType) or hasattr(value, "ea_spec")
        if attribute in _HOOKS and not is_marked and not is_ours:
            raise PluginFault(f"its {attribute} lacks @hookimpl (from ea_runtime import hookimpl)")


def _check_unique(records: list[tuple[str, Record]]) -> None:
    seen = set()
    for kind, record in records:
        if (kind, record.name) in seen:
            raise PluginFault(f"{KINDS[kind][0]} returns two records called {record.name!r}")
        seen.add((kind, record.name))


def _tell(info: PluginInfo) -> None:
    line = "waiting for plugin %s (package %s) to load; EA_PLUGINS_BLOCK=%s leaves it out"
    logger.warning(line, info.name, info.package, info.name)


def _identity(distribution: Distribution) -> tuple[str, str]:
    """Name and version, of which damaged metadata may lack either."""
    try:
        return distribution.metadata["Name"] or "unknown", distribution.version or "?"
    except Exception:
        return "unknown", "?"
