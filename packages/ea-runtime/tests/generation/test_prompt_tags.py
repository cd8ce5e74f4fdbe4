from __future__ import annotations

from pathlib import Path

import pytest

from ea_runtime.errors import UserError
from ea_runtime.generation.prompt_tags import Tag, find_tagged, refuse_tags, split_tags


@pytest.mark.parametrize(
    ("prompt", "text", "tags"),
    [
        ("a cat", "a cat", []),
        ("a cat <lora:style>", "a cat ", [("style", 1.0)]),
        ("<lora:style:0.5>a <lora:my style v2:-1>cat", "a cat", [("style", 0.5), ("my style v2", -1.0)]),
        ("a <lora:a:.5> b <lora:a:1e-1>", "a  b ", [("a", 0.5), ("a", 0.1)]),
        ("<lora:v1.5-final:0>", "", [("v1.5-final", 0.0)]),
        ("<lora:红色:0.8> 圆形", " 圆形", [("红色", 0.8)]),
        # text, for Automatic1111 too
        ("a <lora:style", "a <lora:style", []),
        ("a <lora:>", "a <lora:>", []),
        ("a < lora:b>", "a < lora:b>", []),
        ("1 < 2 > 1 <hypernet:x:1>", "1 < 2 > 1 <hypernet:x:1>", []),
    ],
)
def test_tags_are_taken_out(prompt: str, text: str, tags: list[tuple[str, float]]) -> None:
    assert split_tags(prompt) == (text, [Tag(*tag) for tag in tags])


def test_what_looks_like_a_tag_is_told(caplog: pytest.LogCaptureFixture) -> None:
    for text in ("<lora:style:1", "< lora:style>", "<LORA:style:1>", "<lora:>"):
        split_tags(f"a {text}")
        assert f"'{text}' in the prompt is read as text" in caplog.messages[-1]
    caplog.clear()
    split_tags("1 < 2 > 1 <hypernet:x:1> <lora:style:1>")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("<lora:style:much>", r"'<lora:style:much>'.*weight must be a number, got 'much'; 1 is"),
        ("<lora:style:>", r"weight must be a number, got ''"),
        ("<lora:style:nan>", "from -100 to 100, got nan"),
        ("<lora:style:101>", r"from -100 to 100, got 101\.0"),
        ("<lora:style:0.5:0.7>", r"several networks; one weight is read: <lora:NAME:0\.8>"),
        ("<lora:style:te=0.5>", "several networks"),
        *(
            (f"a <lora:{name}:1>", "by its name alone")
            for name in ("../x", "/x", "a/b", "a\\b", "..", ".", " ")
        ),
    ],
)
def test_tags_that_are_none(prompt: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        split_tags(prompt)
    assert "\n" not in str(caught.value)


def test_names_are_files_of_the_folder(tmp_path: Path) -> None:
    for name in ("style.safetensors", "v1.5.safetensors", "notes.txt", "other.pt"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "adapter_model.safetensors").touch()
    found = find_tagged([Tag("v1.5", 0.5), Tag("mine", 1.0), Tag("style", -1.0)], str(tmp_path))
    assert [(one.path, one.weight, one.sha256) for one in found] == [
        (str(tmp_path / "v1.5.safetensors"), 0.5, None),
        (str(tmp_path / "mine"), 1.0, None),
        (str(tmp_path / "style.safetensors"), -1.0, None),
    ]
    for name in ("notes", "other", "folder", "style.safetensors", "STYLE", "v1"):
        with pytest.raises(UserError, match=f"there is no LoRA '{name}' in --lora-dir"):
            find_tagged([Tag(name, 1.0)], str(tmp_path))
    for name in ("stile", "style.safetensors"):
        with pytest.raises(UserError, match="did you mean 'style'"):
            find_tagged([Tag(name, 1.0)], str(tmp_path))
    with pytest.raises(UserError, match=r"it holds 'mine', 'style', 'v1\.5'$"):
        find_tagged([Tag("flowers", 1.0)], str(tmp_path))
    (tmp_path / "OLD.SAFETENSORS").touch()
    assert find_tagged([Tag("OLD", 1.0)], str(tmp_path))[0].path.endswith("OLD.SAFETENSORS")


def test_no_folder_or_an_empty_one(tmp_path: Path) -> None:
    assert find_tagged([], None) == []
    with pytest.raises(
        UserError, match="names the LoRA 'style'; give the folder that holds it with --lora-dir"
    ):
        find_tagged([Tag("style", 1.0)], None)
    with pytest.raises(UserError, match="it holds none"):
        find_tagged([Tag("style", 1.0)], str(tmp_path))
    for name in ("absent", "file"):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"`--lora-dir` .* cannot be read"):
            find_tagged([Tag("style", 1.0)], str(tmp_path / name))


def test_other_texts_may_name_none() -> None:
    refuse_tags("blurred <b>", "--negative")
    with pytest.raises(UserError, match="`--negative` holds '<lora:style:1>'; name LoRAs in the prompt"):
        refuse_tags("blurred <lora:style:1>", "--negative")
