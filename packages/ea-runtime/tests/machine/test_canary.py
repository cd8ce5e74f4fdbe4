"""The canary: its verdicts, its remembered results, and a deliberately broken convolution."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ea_runtime.machine import canary as module
from ea_runtime.machine.canary import Canary, Spec, Trial, Verdict, compare, spec_of
from ea_runtime.testing.formats import broken_convolution

CPU = torch.device("cpu")
_aten = torch.ops.aten


def trial(op: Any, *args: Any) -> Trial:
    return Trial(op, spec_of(args))


def convolution(dtype: torch.dtype = torch.bfloat16, channels: int = 4) -> Trial:
    x, weight = torch.empty(1, channels, 3, 6, 6, dtype=dtype), torch.empty(5, channels, 3, 3, 3, dtype=dtype)
    return trial(
        _aten.convolution.default, x, weight, None, [1, 1, 1], [0, 1, 1], [1, 1, 1], False, [0, 0, 0], 1
    )


def gradients(dtype: torch.dtype = torch.bfloat16, channels: int = 4) -> Trial:
    grad = torch.empty(1, 5, 1, 6, 6, dtype=dtype)
    x, weight = torch.empty(1, channels, 3, 6, 6, dtype=dtype), torch.empty(5, channels, 3, 3, 3, dtype=dtype)
    rest = ([1, 1, 1], [0, 1, 1], [1, 1, 1], False, [0, 0, 0], 1, [True, True, False])
    return trial(_aten.convolution_backward.default, grad, x, weight, None, *rest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sound_operations_pass(dtype: torch.dtype) -> None:
    canary = Canary(CPU, None)
    x = torch.empty(6, 32, dtype=dtype)
    for one in (
        convolution(dtype),
        gradients(dtype),
        trial(_aten.mm.default, x, torch.empty(48, 32, dtype=dtype).t()),
        trial(_aten.native_layer_norm.default, x, [32], None, None, 1e-6),
        trial(_aten._softmax_backward_data.default, x, x, 1, dtype),
    ):
        assert canary.verdict(one) == Verdict(), one.key


@pytest.mark.parametrize("value", [math.nan, math.inf, 3.0])
@pytest.mark.parametrize(
    ("part", "one", "index"),
    [("output", convolution(), 0), ("input gradient", gradients(), 0), ("weight gradient", gradients(), 1)],
)
def test_a_broken_convolution_is_caught(part: str, one: Trial, index: int, value: float) -> None:
    """The twin: only the output or a gradient at one shape is wrong."""
    with broken_convolution(part, at=lambda x, _: x.shape[1] == 4, value=value):
        canary = Canary(CPU, None)
        assert set(canary.verdict(one).wrong) == {index}
        assert one.outputs[index] == part
        for other in (convolution(channels=3), gradients(channels=3)):
            assert not canary.verdict(other).wrong
        sound = gradients() if part == "output" else convolution()
        assert not canary.verdict(sound).wrong
    assert not Canary(CPU, None).verdict(one).wrong


def test_a_single_wrong_value_is_caught() -> None:
    low = high = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert compare(low.bfloat16(), high)[1] is False
    low = low.clone()
    low[500] += 1.0
    assert compare(low, high)[1] is True


def test_what_was_found_is_remembered_for_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "canaries.json"
    with broken_convolution("weight gradient"):
        first = Canary(CPU, path)
        found = first.verdict(gradients())
        first.verdict(convolution())
        first.save()
    tried: list[Trial] = []
    monkeypatch.setattr(Canary, "_try", lambda self, one: tried.append(one) or Verdict())
    again = Canary(CPU, path)
    assert again.verdict(gradients()) == found
    assert again.verdict(convolution()) == Verdict()
    assert not tried
    again.verdict(convolution(channels=7))
    assert len(tried) == 1
    again.save()
    assert len(next(iter(json.loads(path.read_text())["machines"].values()))) == 3
    monkeypatch.setattr(module, "describe_machine", lambda device: "another")
    assert Canary(CPU, path).verdict(gradients()) == Verdict()
    assert len(tried) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 0}', '{"version": 1, "machines": 3}', "[" * 100_000]
)
def test_a_damaged_file_is_an_empty_one(text: str, tmp_path: Path) -> None:
    path = tmp_path / "canaries.json"
    path.write_text(text)
    canary = Canary(CPU, path)
    assert canary.verdict(convolution()) == Verdict()
    canary.save()
    assert json.loads(path.read_text())["version"] == 1


def test_a_file_that_cannot_be_written_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    canary = Canary(CPU, tmp_path / "file" / "canaries.json")
    canary.verdict(convolution())
    canary.save()
    assert "cannot be written" in caplog.text


def test_what_cannot_be_tried_is_no_verdict(tmp_path: Path) -> None:
    path = tmp_path / "canaries.json"
    canary = Canary(CPU, path)
    x = torch.empty(3, 4, dtype=torch.bfloat16)
    verdict = canary.verdict(trial(_aten.mm.default, x, x))
    assert not verdict.wrong
    assert "shapes cannot be multiplied" in verdict.reason
    canary.save()
    assert not path.exists()


def test_attention_is_tried_with_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec((2, 3, 8, 16), (384, 16, 48, 1), torch.bfloat16)
    mask = Spec((2, 1, 8, 8), (8, 8, 0, 1), torch.bfloat16)
    one = Trial(module.attention, (spec, spec, spec, mask, False, None, True))
    assert Canary(CPU, None).verdict(one) == Verdict()

    def broken(query: Any, key: Any, value: Any, **settings: Any) -> Any:
        out = nn.functional.linear(query @ key.transpose(2, 3) @ value, torch.eye(16, dtype=query.dtype))
        return out * (1.2 if query.dtype == torch.bfloat16 else 1.0)

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", broken)
    assert set(Canary(CPU, None).verdict(one).wrong) == {0, 1, 2, 3}


def test_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    Canary(CPU, None).verdict(gradients())
    assert torch.equal(torch.randn(2), expected)


def test_results_are_in_ea_cache_or_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EA_CACHE", str(tmp_path))
    assert module.canary_file() == tmp_path / "canaries.json"
    monkeypatch.delenv("EA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert module.canary_file() == tmp_path / "ea" / "canaries.json"


# --- each part by itself -------------------------------------------------------------------------------------


def test_what_counts_as_wrong() -> None:
    """An error of more than 5% of the norm, a value off by more than half of the root mean square, not finite."""
    assert (module.TOLERANCE, module.OUTLIER) == (0.05, 0.5)
    assert list(module.REDUCED) == [torch.bfloat16, torch.float16]
    high = torch.full((10_000,), 2.0)
    assert compare(high, high) == (0.0, False)
    for share, is_wrong in ((0.0625, True), (0.046875, False)):
        error, found = compare(high * (1 + share), high)
        assert (error, found) == (pytest.approx(share), is_wrong)
    low = high.clone()
    low[3] += 1.0  # half of 2
    assert compare(low, high)[1] is False
    low[3] += 0.125
    assert compare(low, high)[1] is True
    for value in (math.nan, math.inf, -math.inf):
        low[3] = value
        assert compare(low, high) == (math.inf, True)
    nothing = torch.zeros(5)
    assert compare(nothing, nothing) == (0.0, False)
    assert compare(nothing + 1e-3, nothing)[1] is True


def test_specs_are_text_with_the_layout_where_it_is_not_the_usual_one() -> None:
    assert str(Spec((2, 3), (3, 1), torch.bfloat16)) == "bf16[2x3]"
    assert str(Spec((2, 3), (1, 2), torch.float16)) == "fp16[2x3/1.2]"
    assert str(Spec((2,), (1,), torch.float32)) == "fp32[2]"
    assert module.dtype_name(torch.int64) == "int64"
    assert spec_of([torch.empty(2, 3), 7, "x"]) == (Spec((2, 3), (3, 1), torch.float32), 7, "x")
    assert spec_of(torch.empty(2), torch.bfloat16).dtype == torch.bfloat16
    assert spec_of(torch.empty(2, dtype=torch.float64), torch.bfloat16).dtype == torch.float64
    with pytest.raises(AttributeError):
        Spec((2,), (1,), torch.float32).shape = (3,)  # pyright: ignore[reportAttributeAccessIssue]


def test_trials_have_names_shapes_and_a_key() -> None:
    one = gradients()
    assert one.name == "convolution"
    assert one.outputs == ("input gradient", "weight gradient", "bias gradient")
    assert one.shapes == "1x5x1x6x6, 1x4x3x6x6, 5x4x3x3x3"
    assert one.key.startswith(
        "convolution_backward bf16[1x5x1x6x6] bf16[1x4x3x6x6] bf16[5x4x3x3x3] None (1,1,1)"
    )
    assert (convolution().name, convolution().outputs) == ("convolution", ("output",))
    norm = Trial(_aten.native_layer_norm.default, (spec_of(torch.empty(6, 4)), (4,)), (("eps", 1e-6),))
    assert (norm.name, norm.outputs) == ("layer norm", ("output",))
    assert norm.key == "native_layer_norm fp32[6x4] (4) eps=1e-06"
    whole = Trial(module.attention, ())
    assert (whole.name, whole.key) == ("attention", "attention")
    assert whole.outputs == ("output", "query gradient", "key gradient", "value gradient")


def conv(x: Any, weight: Any) -> Trial:
    return trial(_aten.convolution.default, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def test_equal_work_is_tried_once() -> None:
    """On a CPU two samples stand for a batch, and the input is laid out as the weight is."""
    x, weight = torch.empty(5, 4, 6, 6), torch.empty(8, 4, 3, 3)
    last = weight.contiguous(memory_format=torch.channels_last)
    plain = module.as_computed(conv(x, weight), CPU).args[0]
    assert (plain.shape, plain.stride) == ((2, 4, 6, 6), (144, 36, 6, 1))
    assert module.as_computed(conv(x[:1], weight), CPU).args[0].shape == (1, 4, 6, 6)
    assert module.as_computed(conv(x, last), CPU).args[0].stride == (144, 1, 24, 4)
    assert module.as_computed(conv(x, weight), torch.device("cuda")).args[0].shape == (5, 4, 6, 6)
    back = Trial(_aten.convolution_backward.default, (spec_of(torch.empty(5, 8, 6, 6)), *conv(x, last).args))
    grad, into, kernel = module.as_computed(back, CPU).args[:3]
    assert (grad.shape, into.shape, kernel.shape) == ((2, 8, 6, 6), (2, 4, 6, 6), (8, 4, 3, 3))
    assert (grad.stride, into.stride) == ((288, 1, 48, 8), (144, 1, 24, 4))
    other = trial(_aten.mm.default, x[0, 0], x[0, 0])
    assert module.as_computed(other, CPU) is other


def test_a_trial_is_made_once_whatever_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Trial] = []
    monkeypatch.setattr(Canary, "_try", lambda self, one: tried.append(one) or Verdict({0: 0.5}))
    canary = Canary(CPU, None)
    weight = torch.empty(8, 4, 3, 3)
    for batch in (2, 3, 7, 3):
        assert canary.verdict(conv(torch.empty(batch, 4, 6, 6), weight)).wrong == {0: 0.5}
    assert len(tried) == 1
    canary.verdict(conv(torch.empty(1, 4, 6, 6), weight))
    assert len(tried) == 2


def test_drawn_numbers_have_the_layout_and_are_always_the_same() -> None:
    one = module._drawn(Spec((2, 3, 4), (12, 1, 3), torch.bfloat16), CPU, 1)
    assert (one.shape, one.stride(), one.dtype) == ((2, 3, 4), (12, 1, 3), torch.bfloat16)
    assert torch.equal(one, module._drawn(Spec((2, 3, 4), (12, 1, 3), torch.bfloat16), CPU, 1))
    assert not torch.equal(one, module._drawn(Spec((2, 3, 4), (12, 1, 3), torch.bfloat16), CPU, 2))
    wide = module._drawn(Spec((2, 5), (1, 0), torch.float16), CPU, 1)
    assert (wide.shape, wide.stride()[1]) == ((2, 5), 0)
    many = module._drawn(Spec((10_000,), (1,), torch.float32), CPU, 1)
    assert abs(float(many.mean())) < 0.05
    assert abs(float(many.std()) - 1) < 0.05
    whole = module._drawn(Spec((3,), (1,), torch.int64), CPU, 1)
    assert whole.tolist() == [1, 1, 1]


def test_arguments_in_float32() -> None:
    given = (
        [torch.ones(1, dtype=torch.float16), torch.ones(1, dtype=torch.int8)],
        torch.bfloat16,
        torch.int8,
        7,
    )
    (half, whole), dtype, kept, number = module.to_float32(given)
    assert (half.dtype, whole.dtype, dtype, kept, number) == (
        torch.float32,
        torch.int8,
        torch.float32,
        torch.int8,
        7,
    )


@pytest.mark.parametrize("causal", [False, True])
def test_attention_without_gradients_is_its_output_alone(causal: bool) -> None:
    q, k, v = (torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    (out,) = module.attention(q, k, v, None, causal, 0.5, gradients=False)
    assert torch.equal(out, nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.5))
    assert not out.requires_grad
    found = module.attention(q, k, v, None, causal, 0.5, gradients=True)
    assert torch.equal(found[0], out)
    assert [one.shape for one in found[1:]] == [q.shape] * 3
    assert not any(one.requires_grad for one in found)


def test_infinity_is_kept_and_what_others_wrote_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "canaries.json"
    path.write_text(json.dumps({"version": 1, "machines": {"another": {"x": []}}}))
    verdicts = iter([Verdict({0: math.inf, 2: 0.25}), Verdict()])
    monkeypatch.setattr(Canary, "_try", lambda self, one: next(verdicts))
    canary = Canary(CPU, path)
    canary.save()  # nothing new: nothing is written
    assert list(json.loads(path.read_text())["machines"]) == ["another"]
    canary.verdict(convolution())
    canary.verdict(gradients())
    other = json.loads(path.read_text())
    other["machines"][canary.machine] = {"written meanwhile": []}
    path.write_text(json.dumps(other))
    canary.save()
    found = json.loads(path.read_text())
    assert found["machines"]["another"] == {"x": []}
    assert found["machines"][canary.machine] == {
        "written meanwhile": [],
        convolution().key: [[0, "inf"], [2, 0.25]],
        gradients().key: [],
    }
    again = Canary(CPU, path)
    assert again.verdict(convolution()) == Verdict({0: math.inf, 2: 0.25})
    stamp = path.stat().st_mtime_ns
    again.save()
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("rows", [{"x": 7}, {"x": [[1]]}, {"x": [["a", 1]]}, [], 7])
def test_rows_that_are_none_count_as_no_rows(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "canaries.json"
    monkeypatch.setattr(Canary, "_try", lambda self, one: Verdict({0: 1.0}))
    path.write_text(json.dumps({"version": 1, "machines": {module.describe_machine(CPU): rows}}))
    assert Canary(CPU, path).verdict(convolution()).wrong == {0: 1.0}


def test_a_machine_is_its_processor_its_libraries_and_its_threads() -> None:
    found = module.describe_machine(CPU)
    assert found.startswith(f"torch {torch.__version__}, cpu, ")
    assert torch.backends.cpu.get_cpu_capability() in found
    assert f"{torch.get_num_threads()} threads" in found


def test_a_card_is_its_name_and_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    found = module.describe_machine(torch.device("cuda"))
    assert found == f"torch {torch.__version__}, a card, cuda {torch.version.cuda}, cudnn 91002"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("a  long\n line"), "a long line"),
        (RuntimeError("x" * 200), "x" * 120),
        (MemoryError(), "MemoryError"),
    ],
)
def test_why_a_trial_could_not_be_made(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def fail(self: Canary, one: Trial) -> None:
        raise error

    monkeypatch.setattr(Canary, "_compare", fail)
    assert Canary(CPU, None).verdict(convolution()) == Verdict({}, reason)


def test_a_trial_is_made_apart_from_what_is_active_here() -> None:
    seen: list[Any] = []

    def op(x: Any) -> Any:
        seen.append(
            (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
        )
        return x

    op._schema = SimpleNamespace(name="aten::odd")  # pyright: ignore[reportFunctionMemberAccess]
    with torch.inference_mode(), torch.autocast("cpu"):
        assert Canary(CPU, None)._try(Trial(op, (spec_of(torch.ones(2)),))) == Verdict()
    assert seen == [(False, False, False)] * 2  # as it is, and in float32
