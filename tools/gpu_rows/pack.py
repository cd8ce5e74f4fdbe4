"""The folder that is carried to a bare machine: the packages that it lacks, compressed together, and golden data.

Versions are those of the environment that runs this. One archive of all files takes two thirds of what the wheels take.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu_rows.site import ARCHIVE, ROOT

OURS = ("ea-runtime", "ea-vae", "ea-dit", "ea-lora", "ea-data")
#: of all that ours need, what the bare machine has; its packages are older or newer than ours by some versions
ON_THE_MACHINE = frozenset(
    [
        "accelerate",
        "click",
        "einops",
        "filelock",
        "httpx",
        "huggingface-hub",
        "jinja2",
        "lazy-loader",
        "markupsafe",
        "numpy",
        "opencv-python-headless",
        "packaging",
        "peft",
        "pillow",
        "pluggy",
        "protobuf",
        "psutil",
        "pyarrow",
        "regex",
        "requests",
        "rich",
        "safetensors",
        "sentencepiece",
        "tokenizers",
        "torch",
        "tqdm",
        "transformers",
        "typer",
        "typing-extensions",
        "zipp",
    ]
)
PYTHON = "3.12"
#: glibc versions whose wheels run there; pip takes each by its name
_GLIBC = ("2_5", "2_12", "2_17", "2_24", "2_26", "2_27", "2_28", "2_31", "2_34")
_LEFT_OUT = (".pyi", ".pyx", ".pxd", ".c", ".h")
#: the golden networks in the order of their worth, and those that share another's weights
GOLDENS = ("dit_v2", "vae_magvit", "vae_slice", "dit_grid", "dit_sizecond", "dit_v3")
MIB = 1 << 20


def missing(names: Iterable[str] = OURS, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """Name -> version of all that these packages need and the bare machine lacks, ours not counted."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    where = {
        "python_version": PYTHON,
        "python_full_version": f"{PYTHON}.3",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "os_name": "posix",
        "extra": "",
    }
    skipped = {*ON_THE_MACHINE, *(canonicalize_name(name) for name in leave_out)}
    found: dict[str, str] = {}
    queue = [canonicalize_name(name) for name in names]
    seen = set(queue)
    while queue:
        name = queue.pop()
        package = metadata.distribution(name)
        if name not in OURS:
            found[name] = package.version
        for line in package.requires or ():
            requirement = Requirement(line)
            key = canonicalize_name(requirement.name)
            if key in seen or key in skipped:
                continue
            if requirement.marker is None or requirement.marker.evaluate(where):
                seen.add(key)
                queue.append(key)
    return dict(sorted(found.items()))


def pack(folder: Path, reference: Path | None, limit: float, leave_out: list[str]) -> str:
    """Makes the folder and reports what it holds. limit: MiB that it may take together with this repository's files,
    which travel too. Raises SystemExit with one line."""
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"`--pack` needs a new or empty folder, got {folder}; give another one")
    wanted = missing(leave_out=leave_out)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheels = download(wanted, Path(scratch))
        compress(wheels, folder / ARCHIVE)
    own = _size_of_repository()
    taken = own + (folder / ARCHIVE).stat().st_size
    lines = [
        f"{', '.join(f'{name} {version}' for name, version in wanted.items())}: {_mib(folder / ARCHIVE)}",
        f"the repository's files: {own / MIB:.1f} MiB",
    ]
    for name in GOLDENS:
        if reference is None:
            break
        size = _golden(reference / name, folder / "reference" / name, limit * MIB - taken)
        taken += size
        lines.append(
            f"golden {name}: " + (f"{size / MIB:.1f} MiB" if size else "left out, no room or not there")
        )
    lines.append(f"together {taken / MIB:.1f} MiB of {limit:g}")
    if taken > limit * MIB:
        raise SystemExit(
            "\n".join([*lines, "over the limit: `--leave-out NAME` leaves out a package, such as av"])
        )
    return "\n".join(lines)


def download(wanted: dict[str, str], folder: Path) -> list[Path]:
    """The wheels for the bare machine, by pip."""
    pip = ["uv", "tool", "run", "pip"] if shutil.which("uv") else [sys.executable, "-m", "pip"]
    platforms = [f"--platform=manylinux_{glibc}_x86_64" for glibc in _GLIBC]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={PYTHON}"]
    words += ["--implementation=cp", *platforms, f"--dest={folder}"]
    pins = [f"{name}=={version}" for name, version in wanted.items()]
    done = subprocess.run([*pip, *words, *pins], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != len(wanted):
        last = (done.stderr.strip().splitlines() or ["pip printed nothing"])[-1]
        raise SystemExit(f"`--pack` got {len(wheels)} of {len(wanted)} wheels: {last[:300]}")
    return wheels


def compress(wheels: list[Path], archive: Path) -> None:
    """All files of the wheels in one archive, without stubs and sources."""
    with tarfile.open(archive, "w:xz", preset=6) as packed:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as opened:
                for entry in opened.infolist():
                    if entry.is_dir() or entry.filename.endswith(_LEFT_OUT):
                        continue
                    told = tarfile.TarInfo(entry.filename)
                    told.size, told.mode = entry.file_size, 0o644
                    packed.addfile(told, io.BytesIO(opened.read(entry)))


def _golden(source: Path, target: Path, room: float) -> int:
    """Copies a golden network if it fits; its bytes. vae_slice has vae_magvit's weights, which are carried once."""
    files = [
        source / name for name in ("config.json", "golden.safetensors", "diffusion_pytorch_model.safetensors")
    ]
    if not all(file.is_file() for file in files):
        return 0
    twin = target.parent / "vae_magvit" / files[-1].name
    if source.name == "vae_slice" and twin.is_file() and twin.read_bytes() == files[-1].read_bytes():
        files.pop()
    size = sum(file.stat().st_size for file in files)
    if size > room:
        return 0
    target.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, target / file.name)
    return size


def _size_of_repository() -> int:
    words = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed: Any = subprocess.run(words, capture_output=True, check=True).stdout
    files = {ROOT / name.decode() for name in listed.split(b"\0") if name}
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def _mib(file: Path) -> str:
    return f"{file.stat().st_size / MIB:.1f} MiB"
