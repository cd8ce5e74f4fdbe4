from __future__ import annotations

import json
from pathlib import Path

import pytest

from ea_lora import find_targets
from ea_lora.folder import load_networks, t5_shapes
from ea_runtime.errors import MissingPackageError, UserError
from ea_runtime.models.layout import resolve_folder


def test_shapes_are_those_of_the_weights() -> None:
    folder = resolve_folder("tiny")
    try:
        shapes, loaded = (
            load_networks(folder, {"denoiser", "text"}, with_weights=full) for full in (False, True)
        )
    except MissingPackageError as error:
        pytest.skip(str(error))
    for part in ("denoiser", "text"):
        one, other = shapes[part], loaded[part]
        assert one is not None
        assert other is not None
        assert all(p.is_meta for p in one.parameters())
        assert not any(p.is_meta for p in other.parameters())
        assert [(n, p.shape) for n, p in one.named_parameters()] == [
            (n, p.shape) for n, p in other.named_parameters()
        ]
        assert list(find_targets(one)) == list(find_targets(other))


def test_no_weight_of_a_t5_is_read(tmp_path: Path) -> None:
    source = resolve_folder("tiny") / "text_encoder" / "config.json"
    (tmp_path / "text_encoder").mkdir()
    config = tmp_path / "text_encoder" / "config.json"
    config.write_text(source.read_text())  # and no weights beside it
    found = load_networks(tmp_path, {"text"})["text"]
    assert found is not None
    assert len(find_targets(found)) == 14
    assert load_networks(tmp_path, ())["text"] is None

    config.write_text(json.dumps(json.loads(source.read_text()) | {"architectures": ["OtherModel"]}))
    assert t5_shapes(tmp_path) is None
    config.write_text(json.dumps(json.loads(source.read_text()) | {"num_heads": "many"}))
    with pytest.raises(UserError, match=r"text_encoder/config\.json does not fit T5EncoderModel") as caught:
        t5_shapes(tmp_path)
    assert "\n" not in str(caught.value)
