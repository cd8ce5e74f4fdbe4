"""A host with a plugin under test in it, and plugin packages as an installer would write them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

from ea_runtime.plugins import host as plugins
from ea_runtime.plugins.host import Host


@contextmanager
def host_with(*plugin: Any, entry_points: bool = False, name: str = "under-test") -> Iterator[Host]:
    """Uses a host with ea_runtime's own plugin and these as the process's host until the block ends.

    plugin: a module, or an object whose methods are marked with @hookimpl. entry_points: True adds
    installed packages. name: of the plugins; the second is "under-test-2".

    Raises PluginFault, with the reason that `ea plugins` would show, if a plugin is broken.
    """
    host = Host(entry_points=entry_points)
    for number, one in enumerate(plugin, start=1):
        own = name if number == 1 else f"{name}-{number}"
        host.add(one, own, own, "test")
    before = plugins._host
    plugins.set_host(host)
    try:
        yield host
    finally:
        plugins.set_host(before)


def write_package(
    site: Path,
    package: str,
    code: str,
    *,
    plugin: str | None = None,
    target: str | None = None,
    version: str = "1.0",
) -> Path:
    """Writes a plugin package into a folder of sys.path as an installer would: a module and its metadata.

    site: such a folder. package: its name; the module is that with underscores. code: of the module. plugin: the
    entry point's name, by default the package's. target: its value, by default the module. Returns the module's file.
    """
    module = package.replace("-", "_")
    file = site / f"{module}.py"
    file.write_text(dedent(code), encoding="utf-8")
    metadata = site / f"{module}-{version}.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[ea]\n{plugin or package} = {target or module}\n")
    return file
