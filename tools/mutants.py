"""Mutation tests of one module: which small faults do its tests miss?

    uv run poe mutants ea_runtime.files.safe            all faults of tools/mutations.py, as many at once as cores
    uv run poe mutants ea_runtime.files.safe --list     the faults alone
    uv run poe mutants ... -n 4 --line 61               in four processes; the faults of one line
    uv run poe mutants ... --sample 60                  60 of the faults, always the same ones

A module's tests are those of the same place under `tests`: src/ea_x/a/b.py is tested by tests/a/test_b.py.
tools/mutants.toml adds others, and names faults that change nothing, each with its reason.

Nothing in the tree is changed. Python finds the module in a shadow of its package: links to every other file, and the
faulty module in between. So programs that a test starts have the fault, too. A process that has imported all
libraries, and none of ours, is forked for each fault; the fork runs first the tests that reached the line, and if
they miss the fault, the others. It is ended if it takes too much processor time, or none for a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from mutations import Mutation, mutations

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = Path(__file__).with_name("mutants.toml")
OURS = ("ea_runtime", "ea_vae", "ea_dit", "ea_data", "ea_lora", "conftest", "test", "tests")
#: processor seconds, and how often those of the whole tests, that a fork may take; seconds that it may stand still
LEAST, TIMES, PATIENCE = 20, 5, 60
PYTEST = ["-n", "0", "-q", "-x", "--no-header", "--tb=no", "-p", "no:cacheprovider"]


@dataclass
class Module:
    """A module, its file, and the files of its tests."""

    name: str
    path: Path
    tests: list[Path]
    equivalent: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The folder that holds its package."""
        return self.path.parents[len(self.name.split(".")) - (self.path.name != "__init__.py")]


@cache
def settings() -> dict[str, Any]:
    """The tables of mutants.toml."""
    return tomllib.loads(SETTINGS.read_text(encoding="utf-8"))


def find_module(name: str) -> Module:
    """The module of this dotted name. Exits with a line if there is none, or no test of it."""
    parts = name.split(".")
    package = ROOT / "packages" / parts[0].replace("_", "-")
    path = package.joinpath("src", *parts).with_suffix(".py")
    if not path.is_file():
        sys.exit(
            f"`MODULE` must be the dotted name of a module in packages/, got {name!r}: {path} is missing"
        )
    mirrored = package.joinpath("tests", *parts[1:-1], f"test_{parts[-1].lstrip('_')}.py")
    table = settings()
    tests = [mirrored] if mirrored.is_file() else []
    tests += [ROOT / more for more in table.get("tests", {}).get(name, []) if ROOT / more != mirrored]
    if not tests:
        sys.exit(f"no tests of {name}: {mirrored} is missing, and {SETTINGS} names none")
    known = [one for one in table.get("equivalent", []) if one["module"] == name]
    return Module(name, path, tests, {(one["was"], one["becomes"]): one["reason"] for one in known})


class Shadow:
    """A folder from which Python imports the module with a fault, and all else of its package as it is."""

    def __init__(self, module: Module, folder: Path) -> None:
        self.folder, self.scratch = folder / "src", folder / "scratch"
        here, there = self.folder, module.root
        for part in module.path.relative_to(module.root).parts:
            here.mkdir(parents=True, exist_ok=True)
            for one in there.iterdir():
                if one.name not in (part, "__pycache__"):
                    (here / one.name).symlink_to(one)
            here, there = here / part, there / part
        self.file = here

    def write(self, source: str) -> None:
        """Puts a source in the module's place. Its bytecode goes: two faults may have one size and second."""
        shutil.rmtree(self.file.parent / "__pycache__", ignore_errors=True)
        self.file.write_text(source, encoding="utf-8")

    def enter(self) -> None:
        """Makes this process and those it starts import from here."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        sys.path.insert(0, str(self.folder))
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(self.scratch / "hypothesis")


class Lines:
    """A plugin of pytest: which lines of a file each test reaches, and what each test takes."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)
        self.reached: dict[str, list[int]] = {}
        self.seconds: dict[str, float] = {}
        self._now: set[int] = set()

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != self.file:
            return None
        self._now.add(frame.f_lineno)
        return self._line

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._now = set()
        self._began = time.process_time()
        sys.settrace(self._line)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        sys.settrace(None)
        self.reached[nodeid] = sorted(self._now)
        self.seconds[nodeid] = time.process_time() - self._began


class Only:
    """A plugin of pytest: runs these tests alone, the quickest first."""

    def __init__(self, order: list[str]) -> None:
        self.order = {nodeid: at for at, nodeid in enumerate(order)}

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        items[:] = sorted(
            (one for one in items if one.nodeid in self.order), key=lambda one: self.order[one.nodeid]
        )


@dataclass
class Baseline:
    """The tests without a fault: processor seconds, test -> lines, test -> seconds, and the libraries they import."""

    cpu: float
    reached: dict[str, list[int]]
    seconds: dict[str, float]
    libraries: list[str]

    def first(self, line: int) -> list[str]:
        """Tests that reach the line, the quickest first; none for a line of the module's own body."""
        return sorted(
            (one for one in self.reached if line in self.reached[one]), key=self.seconds.__getitem__
        )

    def rest(self, done: list[str]) -> list[str]:
        return sorted(self.reached.keys() - set(done), key=self.seconds.__getitem__)


def run_tests(tests: list[Path], shadow: Shadow, *plugins: object) -> int:
    """Runs pytest in this process; its exit code."""
    import pytest

    os.chdir(ROOT)
    words = [
        *PYTEST,
        f"--basetemp={shadow.scratch / 'tests'}",
        *(str(one.relative_to(ROOT)) for one in tests),
    ]
    return int(pytest.main(words, plugins=list(plugins)))


@contextlib.contextmanager
def forked(log: Path) -> Iterator[int]:
    """Forks; yields 0 in the child, which must not return from the body, and the child's id in the parent."""
    child = os.fork()
    if child:
        yield child
        return
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number in (1, 2):
        os.dup2(out, number)
    try:
        yield 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(99)


def measure(module: Module, source: str, folder: Path) -> Baseline:
    """Runs the tests without a fault. Exits with their output if they fail."""
    shadow, found = Shadow(module, folder / "baseline"), folder / "baseline.json"
    shadow.write(source)
    with forked(folder / "baseline.log") as child:
        if not child:
            shadow.enter()
            before = set(sys.modules)
            lines = Lines(shadow.file)
            code = run_tests(module.tests, shadow, lines)
            used = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
            place = getattr(sys.modules.get(module.name), "__file__", None)
            libraries = [
                one for one in sys.modules if one not in before and one.partition(".")[0] not in OURS
            ]
            result = {
                "cpu": sum(one.ru_utime + one.ru_stime for one in used),
                "reached": lines.reached,
                "seconds": lines.seconds,
                "libraries": libraries,
            }
            found.write_text(json.dumps(result))
            os._exit(98 if not code and place != str(shadow.file) else code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 98:
        sys.exit(f"the tests of {module.name} never import it; add some to {SETTINGS}")
    if code:
        sys.exit(
            f"{(folder / 'baseline.log').read_text()}\nthe tests fail without a fault (exit code {code})"
        )
    return Baseline(**json.loads(found.read_text()))


def try_fault(module: Module, source: str, shadow: Shadow, baseline: Baseline, one: Mutation) -> None:
    """In a child: runs the tests with a fault; ends the process with 0 if it survived, 1 if it was noticed."""
    limit = int(LEAST + TIMES * baseline.cpu)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    shadow.write(one.apply(source))
    shadow.enter()
    if (
        "hypothesis" in sys.modules
    ):  # one failing example is enough; the search for the smallest takes seconds
        from hypothesis import Phase, settings

        settings.register_profile("faults", phases=(Phase.explicit, Phase.generate))
        settings.load_profile("faults")
    first = baseline.first(one.line)
    for chosen in (first, baseline.rest(first)):
        if chosen:
            files = {nodeid.partition("::")[0] for nodeid in chosen}
            tests = [path for path in module.tests if path.relative_to(ROOT).as_posix() in files]
            if run_tests(tests, shadow, Only(chosen)) != 0:
                os._exit(1)
    os._exit(0)


class Running:
    """A fork at work on a fault."""

    def __init__(self, child: int, one: Mutation, shadow: Shadow) -> None:
        self.child, self.one, self.shadow = child, one, shadow
        self.is_late = False
        self._used, self._changed, self._looked = 0.0, time.monotonic(), time.monotonic()

    def result(self) -> str | None:
        """ "killed", "survived" or "timeout"; None while it runs."""
        done, status = os.waitpid(self.child, os.WNOHANG)
        if not done:
            if self._stands_still():
                self.is_late = True
                os.kill(self.child, signal.SIGKILL)
            return None
        with contextlib.suppress(ProcessLookupError):  # what its tests started and did not end
            os.killpg(self.child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(status)
        if self.is_late or code == -signal.SIGXCPU:
            return "timeout"
        return "survived" if code == 0 else "killed"

    def _stands_still(self) -> bool:
        now = time.monotonic()
        if now - self._looked < 1:
            return False
        self._looked, used = now, 0.0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.child)
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    used += sum(one.cpu_times()[:4])
        if used != self._used:
            self._used, self._changed = used, now
        return now - self._changed > PATIENCE


def run_all(
    module: Module, source: str, faults: list[Mutation], baseline: Baseline, folder: Path, processes: int
) -> Iterator[tuple[Mutation, str]]:
    """(fault, "killed", "survived" or "timeout"), in the order in which they end."""
    free = [Shadow(module, folder / f"shadow-{number}") for number in range(processes)]
    running: list[Running] = []
    waiting = list(reversed(faults))
    while waiting or running:
        while waiting and free:
            one, shadow = waiting.pop(), free.pop()
            with forked(shadow.folder.with_name("log")) as child:
                if not child:
                    try_fault(module, source, shadow, baseline, one)
            running.append(Running(child, one, shadow))
        for one in list(running):
            if (found := one.result()) is not None:
                running.remove(one)
                free.append(one.shadow)
                yield one.one, found
        time.sleep(0.02)


def changed_lines(source: str, one: Mutation) -> tuple[str, str]:
    """The lines of a fault, without and with it, stripped and joined."""
    # what is above and below the fault is equal
    above, below = one.line - 1, max(len(source.encode()[one.end :].decode().splitlines()) - 1, 0)
    before, after = (
        text.splitlines()[above : -below if below else None] for text in (source, one.apply(source))
    )
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    parts = [(before[a:b], after[c:d]) for tag, a, b, c, d in blocks if tag != "equal"]
    was, becomes = (" ".join(line.strip() for part in parts for line in part[side]) for side in (0, 1))
    return was, becomes


def drawn(faults: list[Mutation], number: int | None) -> list[Mutation]:
    """That many of the faults at random, the same ones in each run, in their order; all of them for None."""
    if number is None or number >= len(faults):
        return faults
    return [faults[place] for place in sorted(random.Random(0).sample(range(len(faults)), number))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Faults in a module that its tests miss.")
    parser.add_argument("module", metavar="MODULE", help="dotted, such as ea_runtime.files.safe")
    parser.add_argument("-n", "--processes", type=int, default=os.cpu_count() or 1, help="forks at once")
    parser.add_argument(
        "--line", type=int, action="append", help="the faults of this line alone; may be repeated"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="N of the faults, always the same ones")
    parser.add_argument("--list", action="store_true", help="shows the faults and runs nothing")
    options = parser.parse_args()
    module = find_module(options.module)
    source = module.path.read_text(encoding="utf-8")
    if options.sample is not None and options.sample < 1:
        parser.error(f"`--sample` must be 1 or more, got {options.sample}")
    every = mutations(source, options.line)
    faults = drawn(every, options.sample)
    counted = [one for one in faults if changed_lines(source, one) not in module.equivalent]
    if options.list:
        for one in faults:
            print(f"{one.line}: {changed_lines(source, one)[1]}")
        print(f"{len(faults)} faults")
        return
    os.environ |= {"OMP_NUM_THREADS": "1"}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False  # else each fork compiles pytest's plugins and the tests again
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        baseline = measure(module, source, folder)
        print(f"{len(baseline.reached)} tests, {baseline.cpu:.1f} s; {len(counted)} faults", flush=True)
        for library in ("pytest", *baseline.libraries):
            with contextlib.suppress(BaseException):
                importlib.import_module(library)
        results: dict[Mutation, str] = {}
        for one, found in run_all(module, source, counted, baseline, folder, options.processes):
            results[one] = found
            if found != "killed":
                was, becomes = changed_lines(source, one)
                place = f"{module.path.relative_to(ROOT)}:{one.line}"
                print(
                    f"\n--- {found}, {len(results)} of {len(counted)}: {place}\n- {was}\n+ {becomes}",
                    flush=True,
                )
    count = {
        kind: sum(found == kind for found in results.values()) for kind in ("killed", "survived", "timeout")
    }
    share = 100 * (1 - count["survived"] / max(1, len(counted)))
    print(
        f"\n{module.name}: {count['killed']} killed, {count['survived']} survived, {count['timeout']} timeout, "
        f"{len(faults) - len(counted)} equivalent; {share:.0f}% noticed, {time.monotonic() - began:.0f} s"
        + (f"; sample of {len(faults)} of {len(every)}" if len(faults) < len(every) else "")
    )
    sys.exit(count["survived"] > 0)


if __name__ == "__main__":
    main()
