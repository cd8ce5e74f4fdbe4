"""peft's configs: ranks and alphas as peft reads them, and everything that is not plain LoRA refused by name."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ea_lora import load_lora, read_lora
from ea_lora.configs import DIFFUSERS_KEY, AdapterConfig, header_configs
from ea_runtime.errors import UserError

NUM_MUTATED = 200
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "bias": "none"}


class Blocks(nn.Module):
    """(B, 8) -> (B, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"to_q": nn.Linear(8, 8), "proj_out": nn.Linear(8, 8)}) for _ in range(3)]
        )
        self.proj_out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block.get_submodule("proj_out")(block.get_submodule("to_q")(x)))
        return self.proj_out(x)


def make_model() -> Blocks:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Blocks().eval()


def output(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(torch.randn(4, 8, generator=torch.Generator().manual_seed(2)))


def save_with_peft(folder: Path, **how: Any) -> Tensor:
    """Writes an adapter of peft's into a folder, and returns what a model gives with it, loaded by peft."""
    from peft import LoraConfig, PeftModel, get_peft_model

    config: Any = LoraConfig(target_modules=["to_q", "proj_out"], init_lora_weights=False, **how)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model: Any = get_peft_model(make_model(), config).eval()
    model.save_pretrained(folder)  # which sorts the patterns, and the first that fits counts
    return output(PeftModel.from_pretrained(make_model(), str(folder)).eval())


@pytest.mark.parametrize(
    "patterns",
    [
        {"alpha_pattern": {"to_q": 7}},
        {"alpha_pattern": {"to_[a-q]": 3, "proj_out": 5}},
        {"alpha_pattern": {r"blocks\.[02]\..*": 3}, "rank_pattern": {r"blocks\.1\.\w+": 2}},
        {"alpha_pattern": {"to_q|proj_out": 3}},  # each side of the bar is a whole name at the end
        {"alpha_pattern": {"^proj_out": 3, "proj_out": 5}},
        {"alpha_pattern": {"blocks.1.proj_out": 9, r".*\.(to_q|proj_out)": 4}},
        {"rank_pattern": {"(?i:TO_Q)": 2, "^proj_out": 1}, "use_rslora": True},
        {"alpha_pattern": {"proj": 3, "q": 5, "ocks.0.to_q": 6}},  # names in part fit nothing
    ],
)
def test_patterns_are_as_peft_matches_them(patterns: dict[str, Any], tmp_path: Path) -> None:
    theirs = save_with_peft(tmp_path, r=4, lora_alpha=2, **patterns)
    ours = make_model()
    assert len(load_lora(ours, tmp_path, 1.0).matched) == 7
    assert float((output(ours) - theirs).norm() / theirs.norm()) < 1e-6  # float32
    assert float((output(make_model()) - theirs).norm() / theirs.norm()) > 1e-2


def test_what_a_config_leaves_out_is_pefts_default(tmp_path: Path) -> None:
    theirs = save_with_peft(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text('{"peft_type": "LORA"}')
    ours = make_model()
    load_lora(ours, tmp_path, 1.0)
    assert float((output(ours) - theirs).norm() / theirs.norm()) < 1e-6


def test_the_whole_config_of_today_is_accepted(tmp_path: Path) -> None:
    """Everything that peft writes for plain LoRA, and keys of later versions that are off."""
    save_with_peft(tmp_path, r=4, lora_alpha=2, lora_dropout=0.1, exclude_modules="x", layers_pattern=None)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    AdapterConfig(config | {"of_a_later_version": None, "another": False, "more": {}}, "it")
    for start in (True, False, "gaussian", "eva", "orthogonal"):
        AdapterConfig(config | {"init_lora_weights": start}, "it")


def test_a_pattern_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ea_lora.configs._PATTERN_SECONDS", 0.02)
    config = AdapterConfig(PLAIN | {"alpha_pattern": {"(a|aa)+c": 1}}, "it")
    with pytest.raises(UserError, match=r"the pattern .* takes too long"):
        config.alpha_of("a" * 100, 4)


def test_patterns_for_whole_paths_need_them(tmp_path: Path) -> None:
    save_with_peft(tmp_path, r=4, lora_alpha=2, alpha_pattern={"^proj_out": 3})
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({key.replace("base_model.model.", "net."): value for key, value in tensors.items()}, weights)
    with pytest.raises(UserError, match=r"patterns with \^.*'net\.blocks.*save_pretrained"):
        read_lora(tmp_path)


def test_headers_tell_each_network() -> None:
    packed = {f"transformer.{key}": value for key, value in PLAIN.items()}
    packed |= {f"text_encoder.{key}": value for key, value in (PLAIN | {"lora_alpha": 3}).items()}
    found = header_configs({DIFFUSERS_KEY: json.dumps(packed)}, "it")
    assert {part: (name, one.alpha) for part, (name, one) in found.items()} == {
        "denoiser": ("transformer", 2.0),
        "text": ("text_encoder", 3.0),
    }
    assert header_configs({}, "it") == {}


# mutated configs and names: each gives what is wrong and words that the refusal must have

ASKS = {
    "use_dora": True,
    "fan_in_fan_out": True,
    "lora_bias": True,
    "modules_to_save": ["proj_out"],
    "trainable_token_indices": [1, 2],
    "layer_replication": [[0, 2], [1, 3]],
    "target_parameters": ["blocks.0.weight"],
    "use_qalora": True,
    "alora_invocation_tokens": [5],
    "loftq_config": {"loftq_bits": 4},
    "corda_config": {"corda_method": "kpm"},
    "lora_ga_config": {"direction": "ArB2r"},
    "arrow_config": {"top_k": 2},
    "use_bdlora": {"nblocks": 2},
    "kasa_config": {"beta": 1.0},
    "velora_config": {"scale": 1.0},
    "monteclora_config": {"n": 2},
    "megatron_config": {"tp": 2},
    "ensure_weight_tying": True,
}
STARTS = ["pissa", "pissa_niter_16", "PiSSA", "olora", "OLoRA", "loftq", "corda", "lora_ga", "mica", "new", 5]
RELATIVES = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w1_a": "LoHa",
    "lokr_w2": "LoKr",
    "oft_R.weight": "OFT",
    "lora_mid.weight": "LoCon",
    "lora_embedding_A": "embedding",
    "set_weight": "replace",
    "reshape_weight": "widened",
    "base_layer.weight": "base itself",
}


def asks_for_more(draw: random.Random) -> tuple[dict[str, Any], str]:
    key = draw.choice(list(ASKS))
    return {key: ASKS[key]}, f"asks for .*`{key}`"


def starts_from_another_base(draw: random.Random) -> tuple[dict[str, Any], str]:
    start = draw.choice(STARTS)
    return {"init_lora_weights": start}, f"`init_lora_weights` {start!r} changes the base"


def unknown_key(draw: random.Random) -> tuple[dict[str, Any], str]:
    key = "use_" + "".join(draw.choices("abcdefgh", k=6))
    value = draw.choice([True, 1, "on", [0], {"a": None}, 0.5])
    return {key: value}, f"sets '{key}' to .*unknown here"


def other_method(draw: random.Random) -> tuple[dict[str, Any], str]:
    kind = draw.choice(["LOHA", "LOKR", "OFT", "ADALORA", "IA3", "VERA", "lora", None, 1])
    return {"peft_type": kind}, f"`peft_type` must be LORA, got {kind!r}"


def biases(draw: random.Random) -> tuple[dict[str, Any], str]:
    kind = draw.choice(["all", "lora_only", None, True])
    return {"bias": kind}, f"biases \\(`bias` is {kind!r}"


def wrong_number(draw: random.Random) -> tuple[dict[str, Any], str]:
    wrong = draw.choice([0, -1, "4", None, True, [4]])
    where = draw.choice(["r", "lora_alpha", "rank_pattern", "alpha_pattern"])
    value = {"to_q": wrong} if where.endswith("pattern") else wrong
    what = (
        "must be a whole number above 0"
        if where in ("r", "rank_pattern")
        else "alpha must be a number above 0"
    )
    return {where: value}, f"{what}, got {re.escape(repr(wrong))}"


def wrong_pattern(draw: random.Random) -> tuple[dict[str, Any], str]:
    key = draw.choice(["rank_pattern", "alpha_pattern"])
    wrong = draw.choice(["(", "to_q)", "[a", "*to_q", "a" * 2000, "(?P<a>x)(?P<a>"])
    return {key: {wrong: 4}}, f"`{key}` holds .*no regular expression"


def another_rank(draw: random.Random) -> tuple[dict[str, Any], str]:
    rank = draw.choice([1, 2, 8, 128])
    wrong = draw.choice([{"r": rank}, {"rank_pattern": {draw.choice(["to_q", r"blocks\.0\..*"]): rank}}])
    return wrong, f"rank {rank}, and its matrices have 4"


CONFIG_KINDS: list[Callable[[random.Random], tuple[dict[str, Any], str]]] = [
    *(asks_for_more, starts_from_another_base, unknown_key, other_method),
    *(biases, wrong_number, wrong_pattern, another_rank),
]


def relative(draw: random.Random, tensors: dict[str, Tensor], layer: str) -> str:
    end = draw.choice(list(RELATIVES))
    tensors[f"{layer}.{end}"] = torch.ones(2)
    return f"holds '{re.escape(layer)}.*{RELATIVES[end]}"


def addition(draw: random.Random, tensors: dict[str, Tensor], layer: str) -> str:
    end = draw.choice(["diff", "diff_b", "bias", "lora_A.bias", "lora_B.default.bias", "w_norm"])
    tensors[f"{layer}.{end}"] = torch.tensor([0.0, 1e-4])
    return f"holds '{re.escape(layer)}\\.{re.escape(end)}', which adds to a weight or bias"


def half_lost(draw: random.Random, tensors: dict[str, Tensor], layer: str) -> str:
    lost, role = draw.choice([("lora_A", "down"), ("lora_B", "up")])
    del tensors[f"{layer}.{lost}.weight"]
    return f"layer '{re.escape(layer)}' has no {role} matrix"


def second_of_a_role(draw: random.Random, tensors: dict[str, Tensor], layer: str) -> str:
    end = draw.choice(
        ["lora_down.weight", "lora.down.weight", "lora_A.style.weight", "lora_linear_layer.down.weight"]
    )
    tensors[f"{layer}.{end}"] = tensors[f"{layer}.lora_A.weight"].clone()
    return f"a second down for '{re.escape(layer)}'"


def stranger(draw: random.Random, tensors: dict[str, Tensor], layer: str) -> str:
    name = draw.choice(["step", f"{layer}.weight", f"{layer}.lora_C.weight", "optimizer.0.exp_avg"])
    tensors[name] = torch.ones(2)
    return f"1 tensors that are no part of a LoRA, first '{re.escape(name)}'"


def renamed(tensors: dict[str, Tensor], layer: str, other: str) -> None:
    for end in ("lora_A.weight", "lora_B.weight"):
        tensors[f"{other}.{end}"] = tensors.pop(f"{layer}.{end}")


def another_prefix(draw: random.Random, tensors: dict[str, Tensor], layer: str) -> str:
    prefix = draw.choice(["model.", "transformer.", "net.0.", "diffusion_model."])
    renamed(tensors, layer, prefix + layer)
    return f"without the prefix '{re.escape(prefix)}'"


def other_modules(draw: random.Random, tensors: dict[str, Tensor], layer: str) -> str:
    end = draw.choice(["_x", "2", ".inner", "_lora"])
    for name in sorted({key.rpartition(".lora_")[0] for key in tensors}):
        renamed(tensors, name, name + end)
    return "layers that fit nothing here: 7 for the denoiser"


KEY_KINDS: list[Callable[[random.Random, dict[str, Tensor], str], str]] = [
    *(relative, addition, half_lost, second_of_a_role, stranger, another_prefix, other_modules),
]


def test_mutated_configs_and_names_are_refused_with_the_reason(tmp_path: Path) -> None:
    save_with_peft(tmp_path, r=4, lora_alpha=2)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    original, plain = load_file(weights), json.loads(config.read_text())
    bare = {key.removeprefix("base_model.model."): value for key, value in original.items()}
    model = make_model()
    before = output(model)
    load_lora(model, tmp_path).unload()  # as it is, it is good
    seen = set()
    for seed in range(NUM_MUTATED):
        draw = random.Random(seed)
        kinds = CONFIG_KINDS if seed % 2 else KEY_KINDS
        kind: Any = kinds[seed // 2 % len(kinds)]
        if seed % 2:
            change, reason = kind(draw)
            save_file(original, weights)
            config.write_text(json.dumps(plain | change))
        else:
            tensors = dict(bare)
            reason = kind(draw, tensors, draw.choice(sorted({key.rpartition(".lora_")[0] for key in bare})))
            save_file(tensors, weights)
            config.write_text(json.dumps(plain))
        with pytest.raises(UserError) as caught:
            load_lora(model, tmp_path)
        assert re.search(reason, str(caught.value)), (kind.__name__, str(caught.value), reason)
        assert "\n" not in str(caught.value)
        seen.add(str(caught.value))
    assert torch.equal(output(model), before)
    assert len(seen) > NUM_MUTATED // 2


def test_an_adapter_for_a_changed_base_is_refused(tmp_path: Path) -> None:
    """pissa takes the largest directions out of the base: its matrices on the base as it is are another model."""
    from peft import LoraConfig, get_peft_model

    peft: Any = get_peft_model(
        make_model(), LoraConfig(r=4, target_modules=["to_q"], init_lora_weights="pissa")
    )
    peft.save_pretrained(tmp_path)
    assert torch.allclose(output(peft), output(make_model()), atol=1e-5)  # untrained: the base's output
    with pytest.raises(
        UserError, match=r"'pissa' changes the base model.*path_initial_model_for_weight_conversion"
    ):
        read_lora(tmp_path)


def test_the_reported_pissa_adapter_is_refused(field_cases: Path) -> None:
    with pytest.raises(UserError, match="'pissa' changes the base model"):
        read_lora(field_cases / "generation" / "lora_pissa")
