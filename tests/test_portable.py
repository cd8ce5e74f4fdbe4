"""Every module imports on Windows and macOS: none needs `fcntl`, `resource` or /proc before it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PACKAGES = ("ea_runtime", "ea_vae", "ea_dit", "ea_data", "ea_lora")
TWINS = {
    "locks": "import fcntl",
    "limits": "import resource",
    "reads": "from pathlib import Path\nLINES = Path('/proc/meminfo').read_text()",
    "opens": "import os\nFLAGS = os.O_NOFOLLOW",
    "asks": "import sys\nassert sys.platform.startswith('linux')",
}
#: Imports everything once, which loads the libraries, then our modules again on an imitation of another system.
PROGRAM = """
import importlib, json, os, pkgutil, signal, sys

def modules(package):
    yield package
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if not found.name.endswith("__main__"):
            yield found.name

names = [name for package in sys.argv[1:] for name in modules(package)]
for name in names:
    importlib.import_module(name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for place, missing in (
    (os, "fork pread preadv readv writev register_at_fork sched_getaffinity sysconf getuid"),
    (os, "O_NOFOLLOW O_NONBLOCK O_CLOEXEC"),
    (signal, "SIGKILL SIGHUP SIGALRM SIGUSR1"),
):
    for name in missing.split():
        delattr(place, name)

def watch(event, args):
    if event == "open" and str(args[0]).startswith("/proc"):
        raise OSError(f"there is no {args[0]}")

sys.addaudithook(watch)
failed = {}
for sys.platform in ("win32", "darwin"):
    for name in names:
        sys.modules.pop(name, None)
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            failed.setdefault(name, f"{sys.platform}: {type(error).__name__}: {error}")
print(json.dumps({"names": names, "failed": failed}))
"""


def test_every_module_imports_elsewhere_and_one_that_does_not_is_found_out(tmp_path: Path) -> None:
    twins = tmp_path / "ea_twins"
    twins.mkdir()
    (twins / "__init__.py").write_text("")
    for name, code in TWINS.items():
        (twins / f"{name}.py").write_text(f"{code}\n")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *PACKAGES, "ea_twins"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {f"ea_twins.{name}" for name in TWINS} == set(found["failed"]), found["failed"]
    assert {name.partition(".")[0] for name in found["names"]} == {*PACKAGES, "ea_twins"}
