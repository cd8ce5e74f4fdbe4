"""Malicious folders: over 200 of them under an audit hook, none of which may have a side effect.

The hook sees processes, connections, unpickled names, compiled text and files opened outside the folder. A deliberately
broken loader shows that it would notice.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from ea_runtime.errors import UserError
from ea_runtime.models.check import check_folder
from ea_runtime.models.hash import model_hash
from ea_runtime.models.loading import load_parts
from ea_runtime.models.weights import read_header

PARTS = ("vae", "transformer", "text_encoder")
SINISTER = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pty.spawn",
    "pickle.find_class",
    "socket.connect",
    "socket.getaddrinfo",
    "ctypes.dlopen",
    "os.remove",
    "os.rename",
    "shutil.rmtree",
    "urllib.Request",
)
Mutation = Callable[[Path], None]


PICKLE_NAMES = ("pytorch_model.bin", "model.pt", "last.ckpt")
BAD_INDEX_FILES: tuple[Any, ...] = (
    "..",
    "",
    "a/b.safetensors",
    "C:\\x.safetensors",
    "x.safetensors\0",
    "file:///etc/passwd",
    "https://example.org/x.safetensors",
    "evil.bin",
    7,
    None,
    ["kept.safetensors"],
    {},
    {"x": "kept.safetensors"},
    "kept.safetensors ",
)
BAD_CONFIG: tuple[tuple[str, Any], ...] = (
    ("auto_map", {"AutoModel": "evil--code.Model", "AutoConfig": "code.Config"}),
    ("quantization_config", {"quant_method": "bitsandbytes"}),
    ("custom_pipelines", {"x": "y"}),
    ("_attn_implementation", "evil/kernel"),
    ("attn_implementation", "evil/kernel:f"),
    ("transformers_weights", "../secret"),
    ("num_layers", 10**12),
    ("width", 10**12),
    ("width", -1),
    ("d_model", 2**62),
    ("vocab_size", 10**15),
    ("layers_per_block", 10**9),
    ("num_layers", ["x"]),
)
BAD_CLASSES: tuple[Any, ...] = (
    "os.system",
    "../evil",
    "x" * 5000,
    ["posixpath"],
    None,
    {},
    "subprocess.Popen",
    7,
)
BAD_JSON = (
    "{" * 200_000,
    '{"a": ' * 50_000,
    " " * (2 << 20),
    "\0",
    "[]",
    "1e999999",
    '{"width": 1' + "0" * 9999,
)


class Watch:
    """Events seen by an audit hook. Hooks cannot be removed, so one serves all tests and listens on request."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.folder: Path | None = None
        self.readable: tuple[str, ...] = ()
        sys.addaudithook(self._hear)

    @contextlib.contextmanager
    def over(self, folder: Path) -> Iterator[list[str]]:
        """Collects side effects of the body; reading is allowed in `folder` and in Python's installation."""
        source = Path(__file__).resolve().parents[3]
        self.seen = []
        places = (sys.prefix, sys.base_prefix, str(source), "/proc", "/sys", "/usr", "/lib")
        self.readable = (str(folder), *places)
        self.folder = folder
        try:
            yield self.seen
        finally:
            self.folder = None

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in SINISTER:
            self.seen.append(f"{event} {str(args)[:100]}")
        elif event == "compile" and args[0] is not None and b"owned" in _bytes(args[0]):
            self.seen.append("compile")
        elif event == "open" and isinstance(args[0], (str, bytes)):
            path = os.path.abspath(os.fsdecode(args[0]))
            writes = (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not path.startswith("/dev/")
            if writes or not path.startswith((*self.readable, "/dev/")):
                self.seen.append(f"open {path}")


def _bytes(source: Any) -> bytes:
    return (
        source.encode("utf-8", "replace")
        if isinstance(source, str)
        else source
        if isinstance(source, bytes)
        else b""
    )


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


class Payload:
    """Unpickling it leaves a file `owned` in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder}/owned"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def pickle_bytes(folder: Path, as_zip: bool) -> bytes:
    if not as_zip:
        return pickle.dumps(Payload(folder))
    buffer = io.BytesIO()
    torch.save({"weight": Payload(folder)}, buffer)
    return buffer.getvalue()


def weights_of(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def variants(outside: Path) -> list[tuple[str, Mutation]]:
    """(name, change made to a good folder). `outside` holds a file that nothing may read."""
    code = f"__import__('os').system('touch {outside}/owned')"
    found: list[tuple[str, Mutation]] = []

    def add(name: str, change: Mutation) -> None:
        found.append((name, change))

    def edit(file: str, **changes: Any) -> Mutation:
        def change(folder: Path) -> None:
            path = folder / file
            path.parent.mkdir(exist_ok=True)
            old = json.loads(path.read_text()) if path.is_file() else {}
            path.write_text(json.dumps({**old, **changes}))

        return change

    def replace(file: str, content: bytes | str | None = None, link: Path | str | None = None) -> Mutation:
        def change(folder: Path) -> None:
            path = weights_of(folder, file) if file in PARTS else folder / file
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            if link is not None:
                path.symlink_to(link)
            elif content is None:
                os.mkfifo(path)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)

        return change

    def index(part: str, value: Any) -> Mutation:
        def change(folder: Path) -> None:
            path = weights_of(folder, part)
            names = list(read_header(path).tensors)
            stem = path.name.removesuffix(".safetensors")
            path.rename(path.with_name("kept.safetensors"))
            weight_map = value if isinstance(value, dict) else dict.fromkeys(names, value)
            (folder / part / f"{stem}.safetensors.index.json").write_text(
                json.dumps({"weight_map": weight_map})
            )

        return change

    def pickled(part: str, name: str, as_zip: bool, keep: bool) -> Mutation:
        def change(folder: Path) -> None:
            if not keep:
                weights_of(folder, part).unlink()
            (folder / part / name).write_bytes(pickle_bytes(outside, as_zip))

        return change

    def directory_link(part: str) -> Mutation:
        def change(folder: Path) -> None:
            shutil.move(folder / part, outside / part)
            (folder / part).symlink_to(outside / part)

        return change

    bad_files = [str(outside / "secret.safetensors"), "../../outside/secret.safetensors", *BAD_INDEX_FILES]
    for part in PARTS:
        config = f"{part}/config.json"
        for name, as_zip, keep in product(PICKLE_NAMES, (False, True), (False, True)):
            add(f"pickle {part} {name} {as_zip} {keep}", pickled(part, name, as_zip, keep))
        for as_zip in (False, True):
            add(f"pickle called safetensors {part}", replace(part, pickle_bytes(outside, as_zip)))
        for value in bad_files:
            add(f"index {part} {value!r}", index(part, value))
        add(f"weights link {part}", replace(part, link=outside / "secret.safetensors"))
        add(f"weights pipe {part}", replace(part))
        add(f"config link {part}", replace(config, link=outside / "secret.json"))
        add(f"config pipe {part}", replace(config))
        add(f"config loop {part}", replace(config, link="config.json"))
        add(f"folder link {part}", directory_link(part))
        coded = [(key, code) for key in ("num_layers", "width", "mode", "feed_forward_proj")]
        for key, value in (*BAD_CONFIG, *coded):
            add(f"config {part} {key} {str(value)[:20]}", edit(config, **{key: value}))
        for name in (code, *BAD_CLASSES):
            changes = {"_class_name": name, "architectures": name, "model_type": name}
            add(f"class {part} {str(name)[:20]}", edit(config, **changes))
        for text in BAD_JSON:
            add(f"json {part} {text[:6]!r}", replace(config, text))

    tokenizer = "tokenizer/tokenizer_config.json"
    add("tokenizer code", edit(tokenizer, auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}))
    add("tokenizer class", edit(tokenizer, tokenizer_class="os.system"))
    add("tokenizer template", edit(tokenizer, chat_template="{{ ''.__class__.__mro__ }}"))
    add(
        "tokenizer path",
        edit(tokenizer, tokenizer_file=str(outside / "secret.json"), vocab_file="/etc/passwd"),
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        add(f"tokenizer link {name}", replace(f"tokenizer/{name}", link=outside / "secret.json"))
        add(f"tokenizer pipe {name}", replace(f"tokenizer/{name}"))
        add(f"tokenizer text {name}", replace(f"tokenizer/{name}", code))
    adapter = {
        "base_model_name_or_path": str(outside),
        "peft_type": "LORA",
        "auto_mapping": {"parent_library": "evil"},
    }
    add("adapter", edit("text_encoder/adapter_config.json", **adapter))
    for name in ("model_index.json", "ea.json", "scheduler/scheduler_config.json"):
        add(f"link {name}", replace(name, link=outside / "secret.json"))
        add(
            f"code {name}",
            edit(name, _class_name=["evil", "Pipeline"], sampler=code, beta_start=code, steps=code),
        )
        add(f"pipe {name}", replace(name))
    for name in (
        "pipeline.py",
        "__init__.py",
        "vae/modeling.py",
        "tokenizer/tokenization.py",
        "conftest.py",
        "torch.py",
    ):
        add(f"module {name}", replace(name, f"import os; os.system('touch {outside}/owned')"))
    return found


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """Fails if the body waits for something that never comes, or computes for more than five seconds.

    An alarm cuts off the first; the second is measured in processor time, so a busy machine changes nothing.
    """

    def ring(*_: object) -> None:
        raise TimeoutError("still waiting after two minutes")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)
    started = time.process_time()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert time.process_time() - started < 5


def attack(folder: Path, load: Callable[[Path], Any]) -> list[str]:
    """Loads, checks and hashes; returns the errors. Anything but one-line UserErrors propagates."""
    messages = []
    for action in (load, check_folder, model_hash):
        try:
            action(folder)
        except UserError as error:
            messages.append(str(error))
    return messages


@pytest.fixture
def outside(tmp_path: Path, folder_source: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.json").write_text('{"_class_name": "FakeVae", "secret": "CANARY"}')
    shutil.copy(weights_of(folder_source, "vae"), folder / "secret.safetensors")
    return folder


@pytest.mark.slow
def test_hostile_folders_have_no_side_effect(
    folder_source: Path,
    tmp_path: Path,
    outside: Path,
    watch: Watch,
    use_fake_host: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load_parts(folder_source)  # imports happen here, not under the hook
    check_folder(folder_source)
    cases = variants(outside)
    assert len(cases) >= 200
    refused = 0
    for name, change in cases:
        folder = Path(shutil.copytree(folder_source, tmp_path / "model"))
        change(folder)
        monkeypatch.chdir(folder)
        with no_hang(), watch.over(folder) as seen:
            messages = attack(folder, load_parts)
        assert seen == [], name
        assert not (outside / "owned").exists(), name
        assert all(message.isprintable() and len(message) < 1000 for message in messages), name
        assert "CANARY" not in "".join(messages), name
        refused += bool(messages)
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder)
        for part in PARTS:
            shutil.rmtree(outside / part, ignore_errors=True)
    # the rest load as if the bait were absent: pickles next to safetensors, modules, unknown keys
    assert refused > len(cases) // 2


def test_a_loader_that_unpickles_is_caught(
    folder_source: Path, tmp_path: Path, outside: Path, watch: Watch, use_fake_host: Any
) -> None:
    """The twin: the same watch over deliberately broken loaders."""
    folder = Path(shutil.copytree(folder_source, tmp_path / "model"))
    (folder / "vae/model.bin").write_bytes(pickle_bytes(outside, as_zip=True))
    with watch.over(folder) as seen:
        torch.load(folder / "vae/model.bin", weights_only=False)
    assert any(line.startswith("pickle.find_class") for line in seen)
    assert any(line.startswith("os.system") for line in seen)
    assert (outside / "owned").exists()
    with watch.over(folder) as seen:
        eval(f"'{outside}/owned'")
    assert seen == ["compile"]
    with watch.over(folder) as seen:
        (outside / "secret.json").read_text()
    assert seen == [f"open {outside}/secret.json"]


def mutate(data: bytes, random_source: random.Random) -> bytes:
    """One damaged copy of a safetensors file: bytes of the header, its length, or the file's length."""
    header_end = 8 + int.from_bytes(data[:8], "little")
    changed = bytearray(data)
    kind = random_source.randrange(6)
    if kind == 0:
        changed[random_source.randrange(8, header_end)] = random_source.randrange(256)
    elif kind == 1:
        changed[random_source.randrange(8)] = random_source.randrange(256)
    elif kind == 2:
        del changed[random_source.randrange(len(changed)) :]
    elif kind == 3:
        place = random_source.randrange(8, header_end)
        changed[place:place] = random_source.randbytes(random_source.randrange(1, 9))
    elif kind == 4:
        place = random_source.randrange(8, header_end)
        changed[place : place + 4] = b"9" * 4
    else:
        header = json.loads(data[8:header_end])
        name = random_source.choice(list(header.keys() - {"__metadata__"}))
        key = random_source.choice(["dtype", "shape", "data_offsets"])
        header[name][key] = random_source.choice(
            [
                None,
                [],
                [-1],
                [1.5, 2],
                [True],
                "F32",
                "Q4",
                {},
                [10**30, 10**30],
                [2**63],
                0,
                [[1]],
                "",
                [0, 2**40],
            ]
        )
        text = json.dumps(header).encode()
        changed[:header_end] = len(text).to_bytes(8, "little") + text
    return bytes(changed)


def state_or_error(folder: Path) -> tuple[dict[str, torch.Tensor] | None, str]:
    try:
        return load_parts(folder, parts=["denoiser"]).denoiser.state_dict(), ""
    except UserError as error:
        return None, str(error)


def test_mutated_headers_give_one_line(model_folder: Path) -> None:
    random_source = random.Random(1)
    path = weights_of(model_folder, "transformer")
    good = path.read_bytes()
    expected = load_parts(model_folder, parts=["denoiser"]).denoiser.state_dict()
    accepted = []
    for number in range(300):
        data = mutate(good, random_source)
        path.write_bytes(data)
        with no_hang():
            loaded, message = state_or_error(model_folder)
        assert message.isprintable(), number
        assert len(message) < 1000, number
        if loaded is not None:
            accepted.append(data)
            # a file that loads differs in metadata only, or not at all
            assert all(torch.equal(loaded[name], expected[name]) for name in expected), number
    assert len(accepted) < 30


def test_a_reader_that_trusts_headers_is_caught(model_folder: Path) -> None:
    """The twin: without our checks the same mutations raise all kinds of exceptions."""
    random_source = random.Random(1)
    good = weights_of(model_folder, "transformer").read_bytes()
    raised = set()
    for _ in range(300):
        data = mutate(good, random_source)
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            for item in header.values():
                begin, end = item.get("data_offsets", (0, 0))
                torch.zeros(end - begin)
        except Exception as error:
            raised.add(type(error).__name__)
    assert {"JSONDecodeError", "TypeError"} <= raised


def test_a_zip_called_safetensors(model_folder: Path) -> None:
    with zipfile.ZipFile(weights_of(model_folder, "vae"), "w") as archive:
        archive.writestr("data.pkl", b"x")
    with pytest.raises(UserError, match="damaged"):
        load_parts(model_folder)
