"""`ea export`, step by step: check, trace, look at the shapes, write, build, compare, record.

The bundle appears whole or not at all (files.atomic.atomic_folder).
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ea_runtime.errors import MissingPackageError, UserError, nearest
from ea_runtime.export import build_record, bundle, parity, preflight
from ea_runtime.export.networks import ExportSource, export_configs, sources_of
from ea_runtime.export.parts import EXPORT_PARTS, Graph, Size, check_parts
from ea_runtime.export.trace import DTYPES, FakeNetwork, Traced, initializer_names, make_fake, trace
from ea_runtime.export.weights_file import Place, plan_places, refer, total_bytes, write_weights
from ea_runtime.files.atomic import MANIFEST, atomic_folder, require_new_folder
from ea_runtime.machine.device import Timed
from ea_runtime.models.geometry import Geometry, check_int
from ea_runtime.models.hash import part_digest
from ea_runtime.models.layout import read_defaults, resolve_folder

#: reports progress: (step, graph or part)
Tell = Callable[[str, str], None]
#: opsets that the exporter and the runtimes know
OPSETS = (20, 21, 22, 23)
#: tokens x rows x the widest layer above which the denoiser takes one row at a time (a quarter of 2^31, by half)
_MAX_ROW_ELEMENTS = 1 << 30


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """An export. None stands for the model's own size, all parts, the target's usual opset and dtype.

    parity: "auto" compares what a CPU can compute; "off" compares nothing. capabilities: for trt-rtx, such as
    ("sm89",). memory_limit: bytes of workspace. refittable: for trt and trt-rtx; None: if there is a GPU.
    """

    model: str
    output: str
    target: str = "onnx"
    parts: tuple[str, ...] | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    rows: int | None = None
    dtype: str | None = None
    opset: int | None = None
    parity: str = "auto"
    capabilities: tuple[str, ...] = ()
    memory_limit: int | None = None
    refittable: bool | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The bundle that was made, and its report."""

    folder: Path
    report: Mapping[str, Any]


def export_bundle(request: ExportRequest, tell: Tell | None = None) -> ExportResult:
    """Exports a model folder. Raises UserError, one line, with nothing written, for everything that cannot be done."""
    try:
        return _export(request, tell or (lambda step, what: None))
    except OSError as error:  # a disk that fills up, a folder that may not be written
        raise UserError(f"bundle {request.output!r} cannot be written: {error.strerror or error}") from error


def _export(request: ExportRequest, tell: Tell) -> ExportResult:
    request = settle(request)
    folder = resolve_folder(request.model)
    target = Path(request.output)
    _require_free(target, request.overwrite)
    build_record.require_writable()
    assert request.parts is not None
    sources = sources_of(folder, request.parts)
    size = size_of(request, folder)
    tell("hashing", request.model)
    hashes = {
        name: part_digest(folder, name)
        for name in dict.fromkeys(EXPORT_PARTS[part] for part in request.parts)
    }
    weights = {part: source.plan.weights.num_bytes for part, source in sources.items()}
    preflight.check_memory(preflight.EXPORT_MEMORY)
    preflight.check_disk(target.parent, sum(weights.values()))
    work = _Work(request, size, tell)
    with atomic_folder(target) as partial:
        infos: list[bundle.GraphInfo] = []
        for part in request.parts:
            infos += work.part(part, sources[part], partial)
        work.canaries(partial)
        report = work.report(hashes, infos)
        from ea_runtime.export.report import write_report

        write_report(partial, report)
        described = bundle.Description(
            target=request.target,
            model=str(request.model),
            part_hashes=hashes,
            size=size,
            dtype=str(request.dtype),
            opset=work.opset,
            graphs=tuple(infos),
            settings={
                "refittable": bool(request.refittable),
                "capabilities": list(request.capabilities),
                "versions": report["preflight"]["versions"],
            },
        )
        parity.write_json(partial / bundle.DESCRIPTION, described.model_dump(mode="json"))
        tell("writing", target.name)
    manifest = (target / MANIFEST).read_bytes()
    bundle.record(described, target.resolve(), hashlib.sha256(manifest).hexdigest(), how="built")
    return ExportResult(target, report)


def settle(request: ExportRequest) -> ExportRequest:
    """The request with its defaults, checked. Raises UserError."""
    if request.target not in bundle.TARGETS:
        raise UserError(f"`target` must be one of {', '.join(bundle.TARGETS)}, got {request.target!r}")
    require_packages(request.target)
    usual = "fp32" if request.target == "onnx" else "fp16"
    dtype = request.dtype or usual
    if dtype not in DTYPES:
        raise UserError(f"`dtype` must be one of {', '.join(DTYPES)}, got {dtype!r}{nearest(dtype, DTYPES)}")
    opset = request.opset
    if opset is None:
        # TensorRT takes ONNX's Attention in 16 bits only
        opset = 20 if request.target != "onnx" and dtype == "fp32" else 23
    if opset not in OPSETS:
        raise UserError(f"`opset` must be one of {', '.join(map(str, OPSETS))}, got {opset}")
    if request.parity not in ("auto", "off"):
        raise UserError(f"`parity` must be auto or off, got {request.parity!r}")
    if request.target != "onnx":
        from ea_runtime.export import tensorrt_build

        refittable = tensorrt_build.check(request.target, request.capabilities, request.refittable)
        request = replace(request, refittable=refittable)
    return replace(request, dtype=dtype, opset=opset, parts=check_parts(request.parts))


def require_packages(target: str) -> None:
    """Raises MissingPackageError, with the command that installs it, if an extra is missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if find_spec(name) is None:
            raise MissingPackageError(
                f"`ea export` needs the package {name}; run `pip install 'ea-runtime[onnx]'`"
            )
    if target != "onnx":
        from ea_runtime.export.tensorrt_api import load_api

        load_api(target)


def size_of(request: ExportRequest, folder: Path) -> Size:
    """The size to export for: the request's, else the model's own. Raises UserError for one that does not fit."""
    _, defaults = read_defaults(folder)
    configs = export_configs(folder)
    geometry = Geometry.from_configs(configs["vae"], configs["denoiser"])
    num_frames = geometry.check_num_frames(
        defaults.num_frames if request.num_frames is None else request.num_frames
    )
    height, width = geometry.check_size(
        defaults.height if request.height is None else request.height,
        defaults.width if request.width is None else request.width,
    )
    _, _, t, h, w = geometry.latent_shape(1, num_frames, height, width)
    rows = request.rows
    if rows is None:
        rows = _rows(configs["denoiser"], t * h * w)
    return Size(num_frames, height, width, t, h, w, check_int("batch", rows, 1, 8))


def _rows(denoiser: Mapping[str, Any] | None, positions: int) -> int:
    """2, for guidance in one pass, unless the widest tensor of the denoiser's step comes near what can be counted."""
    config = denoiser or {}
    patch = int(config.get("patch_size") or 2)
    width = int(config.get("num_attention_heads") or 16) * int(config.get("attention_head_dim") or 72)
    gated = positions // patch**2 * 8 * width  # a motion module's GEGLU
    return 2 if 2 * gated <= _MAX_ROW_ELEMENTS else 1


class _Work:
    """One export under way."""

    def __init__(self, request: ExportRequest, size: Size, tell: Tell) -> None:
        self.request = request
        self.size = size
        self.tell = tell
        self.dtype = DTYPES[str(request.dtype)]
        self.opset = int(request.opset or 0)
        self.seconds: dict[str, float] = {}
        packages = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")
        self.preflight = preflight.Preflight(versions=preflight.versions(packages))
        self.preflight.notes = preflight.version_notes(self.preflight.versions)
        self.parity: list[parity.GraphParity] = []
        self.canary: list[parity.GraphParity] = []
        self.used: dict[str, parity.WeightsCheck] = {}
        self.builds: dict[str, Any] = {}
        self.fakes: dict[nn.Module, FakeNetwork] = {}

    def part(self, part: str, source: ExportSource, folder: Path) -> list[bundle.GraphInfo]:
        """Traces, checks, writes and compares one part."""
        if source.network not in self.fakes:  # the VAE's two parts share one
            self.fakes[source.network] = make_fake(source.network, self.dtype)
            if self.request.refittable:
                getattr(source.exporter, "for_refit", lambda network: None)(source.network)
        fake = self.fakes[source.network]
        graphs = source.exporter.graphs(part, fake.network, self.size)
        traced = [self._trace(graph, fake) for graph in graphs]
        places = self._places(traced, fake)
        needed = total_bytes(places)
        copies = 1
        if self.request.target != "onnx":  # each graph becomes an engine that holds its weights again
            copies += len(traced)
            preflight.check_memory(preflight.builder_memory(needed))
        self.preflight.weights_bytes += needed
        preflight.check_disk(folder, needed * copies + (64 << 20))
        ids = {id(parameter) for graph in graphs for parameter in graph.module.parameters()}
        names = {name for name, parameter in fake.network.named_parameters() if id(parameter) in ids}
        self.used[part] = parity.check_weights_used(part, traced, names)
        self.tell("weights", part)
        with self._timed("weights"):
            write_weights(folder / f"{part}.weights", places, source.tensors(set(places), fake.computed))
        infos = [self._write(one, places, folder) for one in traced]
        if self.request.parity != "off":
            self._compare(part, source, fake, traced, folder)
        if self.request.target != "onnx":
            infos = [self._build(info, folder) for info in infos]
        del traced
        gc.collect()
        return infos

    def _trace(self, graph: Graph, fake: FakeNetwork) -> Traced:
        self.tell("tracing", graph.name)
        with self._timed("tracing"):
            traced = trace(graph, fake, self.opset)
        with self._timed("shapes"):
            self.preflight.shapes[graph.name] = preflight.check_shapes(_skeleton(traced.model), graph.name)
        return traced

    def _places(self, traced: list[Traced], fake: FakeNetwork) -> dict[str, Place]:
        names = {name for one in traced for name in initializer_names(one)}
        tensors = (*fake.network.named_parameters(), *fake.network.named_buffers())
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors}
        return plan_places(names, shapes, fake.kinds)

    def _write(self, traced: Traced, places: Mapping[str, Place], folder: Path) -> bundle.GraphInfo:
        import onnx_ir as ir

        graph = traced.graph
        weights = f"{graph.part}.weights"
        refer(traced.model, places, weights, folder)
        name = f"{graph.name}.onnx"
        with self._timed("writing"):
            ir.save(traced.model, folder / name)
        inputs, outputs = (
            tuple(map(_info, values)) for values in (traced.model.graph.inputs, traced.model.graph.outputs)
        )
        return bundle.GraphInfo(
            name=graph.name, part=graph.part, file=name, weights=weights, inputs=inputs, outputs=outputs
        )

    def _compare(
        self, part: str, source: ExportSource, fake: FakeNetwork, traced: list[Traced], folder: Path
    ) -> None:
        if self.dtype == torch.bfloat16:
            for one in traced:
                state = "not compared: ONNX Runtime has no bf16 kernels on a CPU; see the canaries of an fp32 export"
                self.parity.append(parity.GraphParity(one.graph.name, state))
            return
        real: dict[str, Graph] = {}
        for one in traced:
            macs = parity.count_macs(one.graph, fake)
            if macs > parity.MAX_MACS:
                state = (
                    f"not compared: {macs / 1e12:.1f} T multiply-adds are too many for a CPU; export a small --size for"
                    " the same network's parity"
                )
                self.parity.append(parity.GraphParity(one.graph.name, state, self.size.words()))
                continue
            self.tell("comparing", one.graph.name)
            with self._timed("comparing"):
                if not real:
                    loaded = source.exporter.graphs(part, source.load(fake), self.size)
                    real = {graph.name: graph for graph in loaded}
                compared = parity.compare(one, real[one.graph.name], folder, self.dtype, self.size.words())
                self.parity.append(compared)

    def canaries(self, folder: Path) -> None:
        """Exports small networks in the same way and compares them."""
        if self.request.parity == "off" or self.dtype == torch.bfloat16:
            return
        self.tell("canaries", "")
        with self._timed("canaries"):
            self.canary = parity.run_canaries(folder, self.dtype, self.opset)

    def _build(self, info: bundle.GraphInfo, folder: Path) -> bundle.GraphInfo:
        from ea_runtime.export import tensorrt_build

        self.tell("building", info.name)
        with self._timed("building"):
            built = tensorrt_build.build(
                self.request.target,
                folder / info.file,
                folder / f"{info.name}.engine",
                capabilities=self.request.capabilities,
                memory_limit=self.request.memory_limit,
                refittable=bool(self.request.refittable),
            )
        self.builds[info.name] = asdict(built)
        return info.model_copy(update={"engine": f"{info.name}.engine"})

    def report(self, hashes: Mapping[str, str], infos: list[bundle.GraphInfo]) -> dict[str, Any]:
        """All findings, for report.json and report.html."""
        return {
            "target": self.request.target,
            "model": str(self.request.model),
            "part_hashes": dict(hashes),
            "size": self.size.words(),
            "rows": self.size.rows,
            "dtype": self.request.dtype,
            "opset": self.opset,
            "limit": parity.LIMITS[str(self.request.dtype)],
            "preflight": self.preflight.to_json(),
            "weights": {part: asdict(one) for part, one in self.used.items()},
            "parity": [asdict(one) for one in self.parity],
            "canaries": [asdict(one) for one in self.canary],
            "builds": self.builds,
            "graphs": [info.name for info in infos],
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }

    def _timed(self, name: str) -> Timed:
        return Timed(name, self.seconds, torch.device("cpu"))


def _skeleton(model: Any) -> Any:
    """The graph as a protobuf without the values of its weights, which become inputs."""
    import onnx_ir as ir

    kept = dict(model.graph.initializers)
    count = len(model.graph.inputs)
    try:
        for name, value in kept.items():
            if value.const_value is None:
                del model.graph.initializers[name]
                model.graph.inputs.append(value)
        return ir.to_proto(model)
    finally:
        del model.graph.inputs[count:]
        for name, value in kept.items():
            model.graph.initializers[name] = value


def _info(value: Any) -> bundle.TensorInfo:
    shape = tuple(int(n) for n in value.shape)
    return bundle.TensorInfo(name=value.name, shape=shape, dtype=value.dtype.numpy().name)


def _require_free(target: Path, overwrite: bool) -> None:
    is_bundle = (target / bundle.DESCRIPTION).is_file() and not target.is_symlink()
    if is_bundle and not overwrite:
        raise UserError(f"{str(target)!r} exists already; give another --output or --overwrite")
    if not is_bundle:
        require_new_folder(target, "--output")
