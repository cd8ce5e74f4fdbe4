"""Files that are wrong in some way: each must be refused in one line, with the model as it was.

The same check is put to a careless loader, which it must catch: a check that cannot fail is worth nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ea_lora import load_lora
from ea_runtime.errors import UserError

NUM_FILES = 2000
Tensors = dict[str, Tensor]
DOWN, UP = ".lora_down.weight", ".lora_up.weight"


def with_header(tensors: Tensors, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with its header put through `change`, which edits it in place or returns text to put there."""
    data = save(tensors)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    changed = change(header)
    text = (changed if isinstance(changed, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def layer_names(tensors: Tensors) -> list[str]:
    return sorted(key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha"))


class Spoiler:
    """Makes one malformed file from a good one; `kinds` are its ways, each a method that returns bytes."""

    def __init__(self, seed: int, tensors: Tensors) -> None:
        self.random = random.Random(seed)
        self.tensors = tensors
        self.layer = self.random.choice(layer_names(tensors))
        self.role = self.random.choice([DOWN, UP])
        self.key = self.layer + self.role

    def saved(self, **changes: Tensor) -> bytes:
        return save({**self.tensors, **changes})

    def renamed(self, rename: Callable[[str], str]) -> bytes:
        return save({rename(key): value for key, value in self.tensors.items()})

    # the container

    def cut_short(self) -> bytes:
        data = save(self.tensors)
        return data[: self.random.randrange(len(data))]

    def bytes_at_the_end(self) -> bytes:
        return save(self.tensors) + self.random.randbytes(self.random.randint(1, 64))

    def wrong_header_length(self) -> bytes:
        data = save(self.tensors)
        length = int.from_bytes(data[:8], "little")
        wrong = self.random.choice([0, 1, length - 1, length + 8, 1 << 40, (1 << 64) - 1])
        return wrong.to_bytes(8, "little") + data[8:]

    def noise(self) -> bytes:
        return self.random.randbytes(self.random.randint(1, 4096))

    def header_is_no_object(self) -> bytes:
        text = self.random.choice(["[]", '"text"', "null", "1", "{", "[" * 50_000, "{}x", "\x00" * 16])
        return with_header(self.tensors, lambda header: text)

    def name_twice(self) -> bytes:
        def change(header: dict[str, Any]) -> str:
            text = json.dumps(header)
            return f"{text[:-1]},{json.dumps(self.key)}:{json.dumps(header[self.key])}}}"

        return with_header(self.tensors, change)

    def wrong_offsets(self) -> bytes:
        def change(header: dict[str, Any]) -> None:
            begin, end = header[self.key]["data_offsets"]
            header[self.key]["data_offsets"] = self.random.choice(
                [
                    [begin + 4, end + 4],
                    [end, begin],
                    [-4, end - begin - 4],
                    [begin, end + 4],
                    [begin],
                    [0, 1 << 62],
                    None,
                ]
            )

        return with_header(self.tensors, change)

    def wrong_shape_in_header(self) -> bytes:
        def change(header: dict[str, Any]) -> None:
            wrong = [[1 << 40, 1 << 40], [-1, 8], [True, 8], "8", [8.0, 8], [1] * 100, {}, [1 << 62]]
            header[self.key]["shape"] = self.random.choice(wrong)

        return with_header(self.tensors, change)

    def wrong_dtype_in_header(self) -> bytes:
        def change(header: dict[str, Any]) -> None:
            header[self.key]["dtype"] = self.random.choice(["F31", "", None, 4, "I32", "U32", "f32"])

        return with_header(self.tensors, change)

    def metadata_is_no_text(self) -> bytes:
        def change(header: dict[str, Any]) -> None:
            header["__metadata__"] = self.random.choice(
                [[], {"a": 1}, {"a": None}, "text", {"a": {"b": "c"}}]
            )

        return with_header(self.tensors, change)

    # names

    def half_a_layer(self) -> bytes:
        return save({key: value for key, value in self.tensors.items() if key != self.key})

    def only_alphas(self) -> bytes:
        return save({key: value for key, value in self.tensors.items() if key.endswith(".alpha")})

    def misspelt_half(self) -> bytes:
        wrong = self.key.replace("lora_unet__", "lora_unet__x").replace("lora_te_", "lora_te_x")
        return self.renamed(lambda key: wrong if key == self.key else key)

    def another_model(self) -> bytes:
        """Blocks of a UNet whose insides have the names of ours, or layers of which none has."""
        down, up = self.random.sample(
            ["lora_unet_down_blocks_0_", "lora_unet_mid_block_", "unet.up.1.", "x."], 2
        )
        if self.random.random() < 0.5:
            return self.renamed(lambda key: (down if "net_" in key else up) + key.split("__")[-1])

        def renamed(key: str) -> str:
            layer, _, role = key.partition(".")
            for ours, theirs in (("to_q", "qkv"), ("net_", "mlp_"), ("proj", "linear"), ("mix", "merge")):
                layer = layer.replace(ours, theirs)
            return f"{layer}.{role}"

        return self.renamed(renamed)

    def a_whole_model(self) -> bytes:
        return save(
            {key.replace(".lora_", "."): value for key, value in self.tensors.items() if "lora_d" in key}
        )

    def stranger(self) -> bytes:
        name = self.random.choice(["step", "emb_params", "bundle_emb.x", "a" * 5000, "é\n\x1b[31m"])
        return self.saved(**{name: torch.zeros(2)})

    def addition(self) -> bytes:
        """Something added beside the matrices, and not zero."""
        name = self.random.choice(["bias", "diff", "diff_b", "lora_up.bias", "lora_B.bias", "set_weight"])
        return self.saved(
            **{f"{self.layer}.{name}": torch.tensor([0.0, self.random.choice([1e-3, float("nan")])])}
        )

    def relative_of_lora(self) -> bytes:
        endings = [
            "dora_scale",
            "hada_w1_a",
            "lokr_w2",
            "lora_mid.weight",
            "lora_magnitude_vector",
            "oft_blocks",
        ]
        return self.saved(**{f"{self.layer}.{self.random.choice(endings)}": torch.ones(4)})

    def two_of_one_role(self) -> bytes:
        again = {".lora_down.weight": "lora_A", ".lora_up.weight": "lora.up"}[self.role]
        return self.saved(**{f"{self.layer}.{again}.weight": self.tensors[self.key].clone()})

    def two_adapters(self) -> bytes:
        def renamed(key: str) -> str:
            name = "style" if key.startswith(self.layer) else "default"
            return key.replace("lora_down", f"lora_A.{name}").replace("lora_up", f"lora_B.{name}")

        return self.renamed(renamed)

    def broken_peft(self) -> bytes:
        """Another layout, with a half missing, a config that is no JSON, or an alpha that is no number."""
        names = {"lora_unet__": "transformer.", "lora_te_": "text_encoder."}

        def renamed(key: str) -> str:
            for flat, dotted in names.items():
                key = key.replace(flat, dotted)
            return key.replace("lora_down", "lora_A").replace("lora_up", "lora_B")

        tensors = {renamed(key): value for key, value in self.tensors.items() if not key.endswith(".alpha")}
        alphas = [f'{{"transformer.lora_alpha": {value}}}' for value in ('"much"', -1, 0, "NaN", "[4]")]
        wrong = self.random.choice(["{", "[]", *alphas, '{"transformer.use_dora": true}', None])
        if wrong is None:
            del tensors[renamed(self.key)]
            return save(tensors)
        return save(tensors, metadata={"lora_adapter_metadata": wrong})

    def two_layers_for_one_module(self) -> bytes:
        first = "diffusion_model.blocks.0.to_q"
        good = "lora_unet__blocks_0_to_q"
        again = {
            key.replace(good, first): value.clone() for key, value in self.tensors.items() if good in key
        }
        return self.saved(**again)

    def no_tensors(self) -> bytes:
        return save({})

    # numbers

    def not_finite(self) -> bytes:
        key = self.random.choice([self.key, f"{self.layer}.alpha"])
        wrong = self.tensors[key].clone().reshape(-1)
        wrong[self.random.randrange(len(wrong))] = self.random.choice(
            [float("nan"), float("inf"), float("-inf")]
        )
        return self.saved(**{key: wrong.reshape(self.tensors[key].shape)})

    def wrong_alpha(self) -> bytes:
        wrong = [
            torch.tensor(0.0),
            torch.tensor(-2.0),
            torch.tensor([1.0, 2.0]),
            torch.tensor([]),
            torch.tensor(1e38),
        ]
        return self.saved(**{f"{self.layer}.alpha": self.random.choice(wrong)})

    def beyond_range(self) -> bytes:
        return self.saved(
            **{self.key: self.tensors[self.key] * 1e37, f"{self.layer}.alpha": torch.tensor(1e6)}
        )

    def wrong_type(self) -> bytes:
        dtypes = [torch.bool, torch.float8_e4m3fn]
        if self.random.random() < 0.3:
            key = f"{self.layer}.alpha"
        else:
            key, dtypes = self.key, [*dtypes, torch.int32, torch.int64, torch.uint8]
        return self.saved(**{key: self.tensors[key].to(self.random.choice(dtypes))})

    # shapes

    def rank_zero(self) -> bytes:
        down, up = self.tensors[self.layer + DOWN], self.tensors[self.layer + UP]
        return self.saved(**{self.layer + DOWN: down[:0].clone(), self.layer + UP: up[:, :0].clone()})

    def ranks_differ(self) -> bytes:
        down = self.tensors[self.layer + DOWN]
        return self.saved(**{self.layer + DOWN: down[: self.random.randint(1, 3)].clone()})

    def wider_layer(self) -> bytes:
        side = 1 if self.role == DOWN else 0
        value = self.tensors[self.key]
        return self.saved(**{self.key: torch.cat([value, value.narrow(side, 0, 1)], dim=side)})

    def down_and_up_swapped(self) -> bytes:
        down, up = self.tensors[self.layer + DOWN], self.tensors[self.layer + UP]
        return self.saved(**{self.layer + DOWN: up.clone(), self.layer + UP: down.clone()})

    def not_a_matrix(self) -> bytes:
        value = self.tensors[self.key]
        wrong = [value.flatten(), value.flatten()[0].clone(), value[None].expand(3, *value.shape).clone()]
        kernel = value.flatten(1)[..., None, None].expand(-1, -1, 3, 3).clone()
        return self.saved(**{self.key: self.random.choice([*wrong, kernel])})


KINDS = sorted(name for name, value in vars(Spoiler).items() if callable(value) and name[0] != "_")
KINDS = [name for name in KINDS if name not in ("saved", "renamed")]


def spoil(seed: int, tensors: Tensors) -> tuple[str, bytes]:
    kind = KINDS[seed % len(KINDS)]
    return kind, getattr(Spoiler(seed, tensors), kind)()


def fault(load: Callable[[Any, Path], Any], pipe: Any, path: Path, hashed: str, small: Any) -> str | None:
    """The fault in how `load` treated a malformed file, or None if it refused it as it must."""
    try:
        load(pipe, path)
    except UserError as error:
        found = None if "\n" not in str(error) and str(error).isprintable() else "more than one line"
    except Exception as error:
        found = f"crashed with {type(error).__name__}"
    else:
        found = "accepted"
    return found if small.pipe_hash(pipe) == hashed else f"{found or 'refused'}, and the model is changed"


def careless_load(pipe: Any, path: Path) -> None:
    """A loader like others of this field: it writes into the weights as it reads. Broken on purpose."""
    try:
        tensors = load_file(path)
        networks = (("lora_unet__", pipe.denoiser), ("lora_te_", pipe.text.model))
        modules = {
            first + name.replace(".", "_"): m for first, net in networks for name, m in net.named_modules()
        }
        for layer in layer_names(tensors):
            if layer in modules:
                down, up = tensors[layer + DOWN].flatten(1), tensors[layer + UP].flatten(1)
                weight = modules[layer].weight
                weight.data += (float(tensors[f"{layer}.alpha"]) / len(down) * up @ down).reshape(
                    weight.shape
                )
    except Exception as error:
        raise UserError(str(error)) from error


def faults_of(
    load: Callable[[Any, Path], Any], small: Any, folder: Path, numbers: range
) -> tuple[Counter[str], Counter[str]]:
    """Faults by kind of file, and by what is wrong."""
    tensors = small.lora_tensors()
    pipe = small.make_pipe()
    hashed = small.pipe_hash(pipe)
    by_kind: Counter[str] = Counter()
    by_fault: Counter[str] = Counter()
    for seed in numbers:
        kind, data = spoil(seed, tensors)
        path = folder / "bad.safetensors"
        path.write_bytes(data)
        found = fault(load, pipe, path, hashed, small)
        if found:
            by_kind[kind] += 1
            by_fault[found] += 1
            pipe = small.make_pipe()
    return by_kind, by_fault


def test_every_malformed_file_is_refused_and_the_model_unchanged(
    small: SimpleNamespace, tmp_path: Path
) -> None:
    assert len(KINDS) >= 25
    assert faults_of(load_lora, small, tmp_path, range(NUM_FILES)) == (Counter(), Counter())


def test_the_check_catches_a_careless_loader(small: SimpleNamespace, tmp_path: Path) -> None:
    by_kind, by_fault = faults_of(careless_load, small, tmp_path, range(len(KINDS) * 3))
    assert by_fault["accepted"] > 0
    assert by_fault["refused, and the model is changed"] > 0
    assert len(by_kind) > len(KINDS) // 3


def test_the_good_file_is_accepted(small: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(save(small.lora_tensors()))
    pipe = small.make_pipe()
    assert fault(load_lora, pipe, path, small.pipe_hash(pipe), small) == "accepted, and the model is changed"


def test_random_bytes_changed_never_crash_it(small: SimpleNamespace, tmp_path: Path) -> None:
    """One changed byte may leave a file good (a digit of a number): then it loads, and unloads bit-exact."""
    pipe = small.make_pipe()
    hashed = small.pipe_hash(pipe)
    data = save(small.lora_tensors())
    path = tmp_path / "changed.safetensors"
    for seed in range(10_000 if os.environ.get("EA_FULL") == "1" else 200):
        generator = random.Random(seed)
        changed = bytearray(data)
        end = int.from_bytes(data[:8], "little") + 8 if seed % 2 else len(data)
        changed[generator.randrange(end)] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        with contextlib.suppress(UserError):
            load_lora(pipe, path).unload()
        assert small.pipe_hash(pipe) == hashed


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "there is no LoRA file"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: torch.save({"a": torch.ones(1)}, path), "damaged"),
    ],
)
def test_no_file_at_all(
    small: SimpleNamespace, tmp_path: Path, make: Callable[[Path], Any], text: str
) -> None:
    path = tmp_path / "style.safetensors"
    make(path)
    pipe = small.make_pipe()
    hashed = small.pipe_hash(pipe)
    with pytest.raises(UserError, match=text):
        load_lora(pipe, path)
    assert small.pipe_hash(pipe) == hashed


def test_a_pickle_is_not_opened(small: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match="pickle, which can run code"):
        load_lora(small.make_pipe(), path)
