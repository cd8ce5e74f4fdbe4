"""`ea generate` from the command line: outputs, sidecars, and every wrong request in one line."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from ea_runtime.cli.generate.command import generate
from ea_runtime.cli.generate.plan import make_plan, slug
from ea_runtime.cli.main import run
from ea_runtime.errors import UserError
from ea_runtime.files.hashes import content_hash
from ea_runtime.generation.requests import ModelRequest
from ea_runtime.generation.resolve import parse_size
from ea_runtime.video.reader import read_frames


@pytest.fixture(scope="module")
def model(random_model: Path) -> Path:
    """Its videos take a fraction of a second."""
    return random_model


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_video_with_its_sidecar(model, here, capsys):
    assert run(["generate", "A red circle moves right!", "--model", str(model), "--seed", "7"]) == 0
    told = capsys.readouterr()
    assert told.out == "a-red-circle-moves-right.mp4\n"
    for text in (
        "cpu",
        "float32",
        "18 frames at 12 fps",
        "48x32",
        "seed 7",
        "dpm++",
        "denoising",
        "3/3",
        "imports",
    ):
        assert text in told.err
    frames = list(read_frames(here / "a-red-circle-moves-right.mp4"))
    assert (len(frames), frames[0].shape) == (18, (32, 48, 3))
    record = json.loads((here / "a-red-circle-moves-right.json").read_text())
    assert record["settings"]["prompt"] == "A red circle moves right!"
    assert record["settings"]["seed"] == 7
    assert record["fps"] == 12
    assert record["model"]["name"] == str(model)
    assert len(record["model"]["sha256"]) == 64
    assert {"imports", "text", "denoising", "decoding", "writing"} <= set(record["timings"])
    assert len(names(here)) == 2

    # the same again: another name, the same content
    assert run(["generate", "--from", "a-red-circle-moves-right.json"]) == 0
    told = capsys.readouterr()
    assert told.out == "a-red-circle-moves-right-2.mp4\n"
    assert "same content as recorded" in told.err
    first, second = (Path(f"a-red-circle-moves-right{n}.mp4").read_bytes() for n in ("", "-2"))
    assert first == second

    # changed by another option
    assert run(["generate", "--from", "a-red-circle-moves-right.json", "--seed", "8", "-o", "other.mp4"]) == 0
    assert "same content" not in capsys.readouterr().err
    assert Path("other.mp4").read_bytes() != first
    assert run(["generate", "a circle", "--from", "a-red-circle-moves-right.json", "-o", "third.mp4"]) == 0
    assert json.loads(Path("third.json").read_text())["settings"] | {"prompt": ""} == record["settings"] | {
        "prompt": ""
    }


def test_a_long_video_is_made_in_windows_and_repeated(model, here, capsys):
    shared = ["--model", str(model), "--num-frames", "36", "--steps", "1"]
    assert run(["generate", "--prompts-at", "0s: a red circle | 1.5s: a cat", *shared, "-o", "long.mp4"]) == 0
    told = capsys.readouterr().err
    assert "36 frames at 12 fps in 3 windows" in told
    assert "worst of 2 joins: frame" in told
    record = json.loads(Path("long.json").read_text())
    assert record["settings"]["prompt"] == "a red circle"
    assert record["settings"]["prompts_at"] == [["18f", "a cat"]]
    assert record["settings"]["window"] == 18
    assert [one["frame"] for one in record["joins"]] == [18, 27]
    assert run(["generate", "--from", "long.mp4", "-o", "again.mp4"]) == 0
    assert "same content as recorded" in capsys.readouterr().err

    # in one piece, as records without a window are
    assert run(["generate", "a red circle", *shared, "--window", "36", "-o", "whole.mp4"]) == 0
    whole = json.loads(Path("whole.json").read_text())
    assert "window" not in whole["settings"]
    assert "joins" not in whole
    assert "worst" not in capsys.readouterr().err
    assert run(["generate", "--from", "whole.json", "-o", "whole-2.mp4"]) == 0
    assert "same content as recorded" in capsys.readouterr().err


def test_from_says_what_differs(model, here, capsys):
    few = ["--model", str(model), "--num-frames", "1", "--steps", "1"]
    assert run(["generate", "x", *few, "-o", "x.png"]) == 0
    record = json.loads(Path("x.json").read_text())
    record["output"]["sha256"] = "0" * 64
    record["versions"]["torch"] = "1.0"
    record["model"]["sha256"] = "1" * 64
    Path("x.json").write_text(json.dumps(record))
    assert run(["generate", "--from", "x.json", "-o", "y.png"]) == 0
    told = capsys.readouterr().err
    assert "content differs" in told
    assert "torch 1.0 ->" in told
    assert "the model's files" in told


@pytest.mark.parametrize(("output", "made"), [("a.gif", 18), ("a.mp4", 18), ("a.png", 1), ("frames/", 18)])
def test_kinds_of_output(model, here, output, made):
    assert run(["generate", "x", "--model", str(model), "--steps", "1", "-o", output]) == 0
    assert len(list(read_frames(here / output))) == made
    assert len(names(here)) == 2
    record = json.loads(next(here.glob("*.json")).read_text())
    assert record["output"]["file"] == output.rstrip("/")
    assert run(["generate", "--from", str(next(here.glob("*.json"))), "-o", f"again-{output}"]) == 0
    again = json.loads(next(here.glob("again-*.json")).read_text())
    assert again["output"]["sha256"] == record["output"]["sha256"]


@pytest.mark.parametrize("output", ["a.mp4", "a.webm", "a.gif", "a.webp", "a.png", "frames/"])
def test_an_output_makes_itself_again(model, here, capsys, output):
    """Without its sidecar, from what is written in it; bytes are the same, and no place on this disk is in them."""
    few = ["x, a <lora: b", "--steps", "1", "--num-frames", "9", "--seed", "5", "--negative", "a, b"]
    assert run(["generate", *few, "--model", str(model), "-o", output]) == 0
    first = content_hash(here / output)
    next(here.glob("*.json")).unlink()
    content = next(here.glob("frames/*")) if output == "frames/" else here / output
    assert str(model.parent).encode() not in content.read_bytes()
    capsys.readouterr()
    assert run(["generate", "--from", output, "-o", f"again-{output}"]) == 2
    assert "no model is called 'random'" in (told := capsys.readouterr().err)
    assert "give its folder with --model" in told
    assert run(["generate", "--from", output, "--model", str(model), "-o", f"again-{output}"]) == 0
    assert "same content as recorded" in capsys.readouterr().err
    assert content_hash(here / f"again-{output}") == first


def test_an_output_without_a_recipe(model, here, capsys):
    few = ["--steps", "1", "--num-frames", "1", "--model", str(model), "--no-metadata"]
    assert run(["generate", "a secret", *few, "-o", "a.png"]) == 0
    assert b"secret" not in (here / "a.png").read_bytes()
    assert run(["generate", "--from", "a.png", "-o", "b.png", "--no-metadata"]) == 0  # its sidecar is there
    assert content_hash(here / "a.png") == content_hash(here / "b.png")
    (here / "a.json").unlink()
    assert run(["generate", "--from", "a.png", "-o", "c.png"]) == 2
    assert "'a.png' does not say how it was made; give the .json" in capsys.readouterr().err
    for name, content in (("d.mp4", b"no video"), ("e.png", b""), ("f.gif", b"GIF89a"), ("g.webp", b"RIFF")):
        Path(name).write_bytes(content)
        assert run(["generate", "--from", name, "-o", "h.mp4"]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"error: '{name}'")
        assert told.count("\n") == 1


def test_a_picture_is_a_png(model, here, capsys):
    assert (
        run(
            [
                "generate",
                "a cat",
                "--model",
                str(model),
                "--num-frames",
                "1",
                "--size",
                "64x32",
                "--steps",
                "1",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == "a-cat.png\n"
    assert next(read_frames("a-cat.png")).shape == (32, 64, 3)


def test_a_file_of_prompts(model, here, capsys):
    Path("p.txt").write_text("a red circle\n\n  a blue square  \n", encoding="utf-8")
    few = ["--model", str(model), "--num-frames", "1", "--steps", "1", "--prompts", "p.txt", "--seed", "3"]
    assert run(["generate", *few, "-o", "out.png"]) == 0
    assert capsys.readouterr().out == "out-001.png\nout-002.png\n"
    second = json.loads(Path("out-002.json").read_text())["settings"]
    assert (second["prompt"], second["seed"]) == ("a blue square", 4)
    Path("clips").mkdir()
    assert run(["generate", *few, "-o", "clips/"]) == 0
    made = [
        "001-a-red-circle.json",
        "001-a-red-circle.png",
        "002-a-blue-square.json",
        "002-a-blue-square.png",
    ]
    assert names(here / "clips") == made
    assert Path("clips/002-a-blue-square.png").read_bytes() == Path("out-002.png").read_bytes()
    assert run(["generate", "--from", "out-002.json", "-o", "alone.png"]) == 0
    assert Path("alone.png").read_bytes() == Path("out-002.png").read_bytes()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_prompt_files_of_any_editor(model, here, encoding, end):
    """One prompt per line as editors show lines: U+2028, a form feed and a tab are inside one."""
    prompts = ["a red\u2028circle", "a blue\x0csquare", "ein großer\tKreis", "last"]
    Path("p.txt").write_bytes(end.join([prompts[0], "", *prompts[1:]]).encode(encoding))
    plan = make_plan(ModelRequest(model=str(model), num_frames=1), prompts="p.txt")
    assert [job.settings["prompt"] for job in plan.jobs] == prompts


@pytest.mark.parametrize("seed", ["random", "-1", " Random "])
def test_a_random_seed_is_recorded(model, here, seed):
    few = ["--model", str(model), "--num-frames", "1", "--steps", "1", "--size", "32x32"]
    for name in ("a", "b"):
        assert run(["generate", "x", *few, "--seed", seed, "-o", f"{name}.png"]) == 0
    first, second = (json.loads(Path(f"{name}.json").read_text())["settings"]["seed"] for name in "ab")
    assert first != second
    assert run(["generate", "--from", "a.json", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("a.png").read_bytes()


def test_a_prompt_that_starts_with_a_dash(model, here, capsys):
    few = ["--model", str(model), "--num-frames", "1", "--steps", "1"]
    assert run(["generate", *few, "--", "-old man walks"]) == 0
    assert capsys.readouterr().out == "old-man-walks.png\n"


FORMS = ["a.mp4", "b.mov", "c.webm", "d.webp", "e.gif", "f.png", "g/"]
REPEATED = [
    *((f"new/{count}{name}", ["--num-frames", str(count)]) for name in FORMS for count in (1, 9)),
    ("guided.mp4", ["--num-frames", "9", "--negative", "blurry", "--guidance", "7.5"]),
    ("sampled.gif", ["--num-frames", "9", "--sampler", "euler-a", "--seed", "4294967295"]),
    ("rough.webm", ["--num-frames", "9", "--no-smooth", "--fps", "23.976"]),
    ("wide.webp", ["--num-frames", "18", "--size", "96x32"]),
    ("half.mov", ["--num-frames", "9", "--dtype", "bfloat16"]),
    ("quick.png", ["--num-frames", "9", "--steps", "6", "--step-cache", "teacache:0.3"]),
]


def test_twenty_files_of_all_kinds_are_made_again_byte_by_byte(model, here):
    assert len(REPEATED) == 20
    for name, words in REPEATED:
        assert run(["generate", "a circle", "--model", str(model), "--steps", "2", *words, "-o", name]) == 0
        sidecar = Path(name).with_suffix(".json")
        assert run(["generate", "--from", str(sidecar), "-o", f"again/{name}"]) == 0
        assert content_hash(Path("again") / name) == content_hash(Path(name))


def test_what_is_there_is_kept(model, here, capsys):
    few = ["--model", str(model), "--num-frames", "1", "--steps", "1"]
    Path("a.png").write_text("mine")
    assert run(["generate", "x", *few, "-o", "a.png"]) == 2
    assert Path("a.png").read_text() == "mine"
    assert "--overwrite" in capsys.readouterr().err
    assert run(["generate", "x", *few, "-o", "a.png", "--overwrite"]) == 0
    assert run(["generate", "x", *few, "-o", "a.png", "--overwrite"]) == 0
    assert names(here) == ["a.json", "a.png"]


def test_an_empty_prompt_is_allowed_and_a_long_one_is_cut_and_both_are_said(model, here, capsys):
    few = ["--model", str(model), "--num-frames", "1", "--steps", "1"]
    assert run(["generate", "", *few]) == 0
    told = capsys.readouterr()
    assert told.out == "video.png\n"
    assert "prompt is empty" in told.err
    assert run(["generate", "circle " * 119 + "right right", *few]) == 0
    told = capsys.readouterr()
    assert "not seen: 'right right'" in " ".join(told.err.split())
    assert json.loads(next(Path().glob("circle*.json")).read_text())["notes"]


def test_no_smooth_and_negative_reach_the_pipeline(model, here):
    few = ["--model", str(model), "--steps", "1"]
    assert (
        run(
            [
                "generate",
                "x",
                *few,
                "-o",
                "a.gif",
                "--no-smooth",
                "--negative",
                "blurry",
                "--sampler",
                "euler",
            ]
        )
        == 0
    )
    settings = json.loads(Path("a.json").read_text())["settings"]
    assert (settings["smooth"], settings["negative_prompt"], settings["sampler"]) == (
        False,
        "blurry",
        "euler",
    )


BAD = [
    (["x", "--num-frames", "20"], "`num_frames` must be 1 or a multiple of 9, got 20; use 18 or 27"),
    (["x", "--num-frames", "900", "--window", "81"], "`window` must be at most 72"),
    (["x", "--prompts-at", "0s: y"], "leave one out"),
    (["--prompts-at", "1s: y"], "a prompt is needed"),
    (["x", "--num-frames", "36", "--prompts-at", "1.5s: <lora:y:1>"], "--prompts-at"),
    (["x", "--num-frames", "9", "--loop"], "`loop` needs a multiple of 9 frames and at least 18"),
    (["x", "--size", "100x100"], "use 96x96 or 112x112"),
    (["x", "--offload", "sequential", "--device", "cpu"], "'group' works there"),
    (["x", "--size", "100"], "WIDTHxHEIGHT"),
    (["x", "--size", "65536x65536"], "pixels"),
    (["x", "--steps", "0"], "got 0"),
    (["x", "--steps", "2", "--sampler", "pndm"], "use 4"),
    (["x", "--guidance", "nan"], "finite"),
    (["x", "--guidance", "inf"], "finite"),
    (["x", "--sampler", "eulr"], "there are: euler, euler-a, dpm++, pndm, ddim, unipc"),
    (["x", "--seed", "-2"], "`seed`"),
    (["x", "--seed", "soon"], "`seed` must be a whole number or random, got 'soon'"),
    (["x", "--seed", str(43 + (1 << 32))], "so 43 draws the same"),
    (["-a red circle"], '"-" comes after "--": ea generate -- "-a red circle"'),
    (["-old man walks"], 'one that starts with "-" comes after "--"'),
    (["x", "--fps", "0"], "`fps`"),
    (["x", "--fps", "nan"], "`fps`"),
    (["x", "--dtype", "int8"], "`dtype` must be float32, bfloat16, float16"),
    (["x", "--device", "warp"], "`device` must be cpu, cuda, cuda:N or mps"),
    (["x", "--device", "cuda:77"], "this machine"),
    (["x" * (1 << 20)], "16,384"),
    (["x", "--negative", "x" * (1 << 20)], "16,384"),
    (["x", "-o", "out.avi"], ".mp4, .mov, .webm, .webp, .gif, .png"),
    (["x", "-o", "x" * 300 + ".mp4"], "at most 250 bytes, got 304"),
    (["x", "-o", "/proc/out.mp4"], "cannot be written"),
    (["x", "-o", "x/" * 3000 + "out.mp4"], "File name too long; choose another place"),
    (["x", "-o", "a\udcff.mp4"], "a name in UTF-8"),
    (["x", "-o", ".mp4"], "a file name such as out.mp4"),
    (["x", "-o", "out.gif", "--fps", "0.001"], "`fps` must be above 0.00153 for .gif"),
    (["caf\udce9"], "`prompt` must be text in UTF-8"),
    (["x", "--lora-dir", "nowhere"], "`--lora-dir` must be a folder of LoRA files, got 'nowhere'"),
    (["x", "--model", "nothing"], "no model is called 'nothing'"),
    (["x", "--model", "./nothing"], "no model folder"),
    ([], "a prompt is needed"),
    (["x", "--prompts", "p.txt"], "not both"),
    (["--prompts", "nowhere.txt"], "no prompts file"),
    (["--from", "nowhere.json"], "no sidecar file"),
    (["--from", "nowhere.mp4"], "'nowhere.mp4' cannot be read: No such file"),
    (["x", "-o", "out.webm", "--sign", "key.pem"], "`--sign` signs .mp4, .mov, .gif, .png, .webp, not 'out.webm'"),
    (["x", "-o", "out.mp4", "--sign", "key.pem"], "`sign` 'key.pem' cannot be read"),
    (["x", "--step-cache", "teacache:much"], "`step_cache` must be NAME:THRESHOLD"),
    (["x", "--step-cache", "magic"], "no step cache is called 'magic'"),
    (["x", "--cuda-graphs"], "`cuda_graphs` needs a CUDA device"),
    (["x", "--steps", "many"], "--steps"),
    (["x", "--wrong"], "--wrong"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(w)[:40] for w, _ in BAD])
def test_a_wrong_request_is_one_line_and_exit_code_2(model, here, capsys, words, message):
    with_model = [] if "--model" in words else ["--model", str(model)]
    assert run(["generate", *words, *with_model]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    lines = [line for line in told.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert told.err.rstrip().splitlines()[-1] == lines[0]
    assert names(here) == []


def test_prompt_files_that_are_none(model, here, capsys):
    for content, message in (
        ("a\n".encode("utf-16-le"), "line 1 holds zero bytes"),
        (b'a\n{"prompt": "a red circle"}\n', "line 2 of prompts file 'p.txt' is JSON"),
        (b'["a red circle"]', "is JSON"),
        (b"\n \n", "holds no prompt"),
        (b"a\nb\xff\xfe\xff", "line 2 is not UTF-8"),
        (b"a\n\n" + b"x" * 20_000, "`line 3 of p.txt` must take at most 16,384"),
    ):
        Path("p.txt").write_bytes(content)
        assert run(["generate", "--prompts", "p.txt", "--model", str(model)]) == 2
        assert message in capsys.readouterr().err
    assert names(here) == ["p.txt"]


@pytest.mark.parametrize("harm", ["no weights", "damaged", "cut", "no folder parts"])
def test_models_that_cannot_be_loaded(model, here, tmp_path_factory, capsys, harm):
    import shutil

    copy = tmp_path_factory.mktemp("harmed") / "model"
    shutil.copytree(model, copy)
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    if harm == "no weights":
        weights.unlink()
    elif harm == "damaged":
        weights.write_bytes(b"\xff" * 100)
    elif harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        shutil.rmtree(copy / "vae")
    assert run(["generate", "x", "--model", str(copy), "-o", "out.mp4"]) == 2
    told = capsys.readouterr()
    assert sum(line.startswith("error:") for line in told.err.splitlines()) == 1
    assert "Traceback" not in told.err
    assert names(here) == []


@pytest.mark.parametrize("phase", ["denoising", "decoding"])
@pytest.mark.parametrize("how", ["ctrl-c", "sigterm", "fault"])
def test_stopped_in_the_middle_nothing_stays(model, here, capsys, monkeypatch, phase, how):
    from ea_runtime.cli.generate import progress

    shown = progress.GenerationProgress.on_step

    def on_step(self, name: str, done: int, total: int) -> None:
        shown(self, name, done, total)
        if (name, done) == (phase, 2):
            if how == "sigterm":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise KeyboardInterrupt if how == "ctrl-c" else RuntimeError("broken")

    monkeypatch.setattr(progress.GenerationProgress, "on_step", on_step)
    before = signal.getsignal(signal.SIGTERM)
    assert run(["generate", "x", "--model", str(model), "-o", "out.mp4"]) == (1 if how == "fault" else 130)
    assert signal.getsignal(signal.SIGTERM) is before
    assert names(here) == []


def test_everything_is_checked_before_torch_is_imported(model, here):
    code = (
        "import sys; from ea_runtime.cli.generate.plan import *; "
        f"make_plan(ModelRequest(prompt='x', model={str(model)!r}), target='out.mp4'); "
        "sys.exit('torch' in sys.modules)"
    )
    environment = os.environ | {"EA_NO_PLUGINS": "1"}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environment).returncode == 0
    assert names(here) == []


def imported_by_old_versions():
    """Modules that no program of these versions goes without: it makes layers without weights, and T5's config."""
    modules = set()
    if Version(version("torch")) < Version("2.13"):  # 2.9 checks shapes with sympy on the device meta
        modules |= {"sympy"}
    if Version(version("transformers")) < Version("5.22"):  # T5Config brings the generation of all models
        modules |= {"sympy", "torch._dynamo", "torch.distributed.tensor", "triton"}
    return modules


def test_what_is_slow_to_import_is_not_imported(model, here):
    code = (
        "import sys; from ea_runtime.cli.main import run; "
        f"assert run(['generate', 'x', '--model', {str(model)!r}, '--steps=1', '-o', 'x.mp4']) == 0; "
        "slow = {'peft', 'sympy', 'torch._dynamo', 'torch.distributed.tensor', 'triton', "
        "'diffusers.models.autoencoders', 'diffusers.models.unets', 'transformers.modeling_utils'}; "
        f"sys.exit(' '.join((slow & set(sys.modules)) - {imported_by_old_versions()!r}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"{model}: 18 frames")


def test_each_option_is_a_field_of_the_request_or_an_argument_of_the_plan():
    options = set(inspect.signature(generate).parameters)
    request = {one.name for one in fields(ModelRequest)}
    assert options - request == set(inspect.signature(make_plan).parameters) - {"request"}
    tensors = {name for name in request if name.endswith(("embeds", "attention_mask"))}
    of_the_call = {
        "height",
        "width",
        "latents",
        "generator",
        "output",
        "batch_size",
        "posterior",
        "clip_apply_ratio",
    }
    assert request - options - tensors == of_the_call


def test_a_plan_takes_the_models_own_settings(model, here):
    plan = make_plan(ModelRequest(prompt="a red circle", model=str(model)), size="64x48")
    settings = plan.jobs[0].settings
    assert (settings["width"], settings["height"], settings["num_frames"]) == (64, 48, 18)
    assert (settings["num_inference_steps"], settings["sampler"], settings["seed"]) == (3, "dpm++", 43)
    assert plan.request.fps == 12


def test_sizes_and_names():
    assert parse_size("672x384") == (672, 384)
    assert parse_size(" 64 X 32 ") == (64, 32)
    with pytest.raises(UserError):
        parse_size("64x")
    assert slug("A red circle, moving right!") == "a-red-circle-moving-right"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("ein großer Kreis") == "ein-gro-er-kreis"
    assert slug("赤い円") == "video"
    assert len(slug("word " * 100)) <= 60
    assert len(slug("x" * 1000)) == 60


def test_the_bundled_model(here, capsys):
    import ea_runtime

    if not (Path(ea_runtime.__file__).parent / "tiny" / "model_index.json").is_file():
        pytest.skip("the bundled model is not here")
    assert run(["generate", "a red circle moves right", "--steps", "2"]) == 0
    frames = list(read_frames(capsys.readouterr().out.strip()))
    assert len(frames) > 1
    assert min(frames[0].shape[:2]) >= 64


def test_an_approximate_run_says_so_and_is_repeated(model, here, capsys):
    words = ["generate", "a circle", "--model", str(model), "--steps", "6", "--step-cache", "teacache:100"]
    assert run([*words, "-o", "out.png"]) == 0
    assert "approximate: step cache teacache:100 skipped 4 of 6 network passes" in capsys.readouterr().err
    told = json.loads((here / "out.json").read_text())
    assert told["settings"]["step_cache"] == "teacache:100"
    assert any(note.startswith("approximate") for note in told["notes"])
    assert run(["generate", "--from", "out.json", "-o", "again.png"]) == 0
    assert "same content as recorded" in capsys.readouterr().err
    assert run(["generate", "--from", "out.json", "--step-cache", "none", "-o", "exact.png"]) == 0
    assert "approximate" not in capsys.readouterr().err
    assert "step_cache" not in json.loads((here / "exact.json").read_text())["settings"]


def test_another_form_of_the_vae_is_recorded_and_named(model, here, capsys, monkeypatch):
    monkeypatch.setenv("EA_VAE_REWRITES", "always")
    assert run(["generate", "a circle", "--model", str(model), "-o", "out.png"]) == 0
    assert json.loads((here / "out.json").read_text())["device"]["vae_rewrites"] == "always"
    monkeypatch.delenv("EA_VAE_REWRITES")
    capsys.readouterr()
    told = json.loads((here / "out.json").read_text())
    told["output"]["sha256"] = "0" * 64  # as if rounding had shown
    (here / "out.json").write_text(json.dumps(told))
    assert run(["generate", "--from", "out.json", "-o", "again.png"]) == 0
    assert "changed: vae_rewrites always -> as usual" in " ".join(capsys.readouterr().err.split())


def test_compiling_is_repeated_from_a_sidecar(model, here):
    plain = make_plan(ModelRequest(prompt="x", model=str(model)))
    assert not plain.request.compile
    assert run(["generate", "x", "--model", str(model), "-o", "x.png"]) == 0
    told = json.loads((here / "x.json").read_text())
    told["device"] |= {"compiled": True, "cuda_graphs": True}
    (here / "x.json").write_text(json.dumps(told))
    plan = make_plan(ModelRequest(), sidecar="x.json", target="y.png")
    assert plan.request.compile
    assert plan.request.cuda_graphs
    assert make_plan(ModelRequest(prompt="x", model=str(model), cuda_graphs=True)).request.compile
    with pytest.raises(UserError, match="leave --no-compile out"):
        make_plan(ModelRequest(prompt="x", model=str(model), cuda_graphs=True, compile=False))


def test_a_process_among_several_loads_on_its_own_device(here, capsys, monkeypatch):
    def load(model, *, device, **settings):
        raise UserError(f"loading on {device}")

    monkeypatch.setattr("ea_runtime.generation.spread.joined", lambda device: nullcontext("cpu:0"))
    monkeypatch.setattr("ea_runtime.generation.pipeline.VideoPipeline.from_pretrained", load)
    assert run(["generate", "a red circle"]) == 2
    assert "loading on cpu:0" in capsys.readouterr().err
