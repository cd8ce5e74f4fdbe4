"""The phases of a generation with their peaks, for one setting and one way.

On a CPU a phase's bytes are the resident set of the whole program. On a CUDA card they are what torch's allocator
holds, and the CUDA context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ea_runtime.models.geometry import takes_known_frames
from ea_runtime.models.layout import IMAGE_ENCODER
from ea_runtime.models.memory.denoiser import StepInput, walk_step
from ea_runtime.models.memory.meter import Meter
from ea_runtime.models.memory.text import walk_text
from ea_runtime.models.memory.vae import count_tiles, decoded_pieces, tile_edge, walk_decode, walk_encode
from ea_runtime.planning.forecast import ALL_PARTS, Phase, Way
from ea_runtime.planning.parts import ITEMSIZE
from ea_runtime.planning.setting import Setting
from ea_runtime.planning.weights import PlannedModel

#: a CUDA context with the libraries that torch loads, on the card; not measured
CUDA_CONTEXT = 600_000_000
#: libraries and pinned memory of CUDA in the machine's memory; not measured
CUDA_HOST = 1_500_000_000
#: peft, which puts LoRAs on, and what it imports; measured
LORA_PROGRAM = 125_000_000
#: the same for CLIP's picture encoder, which brings transformers' base classes; with a LoRA they are there already
ENCODER_PROGRAM = 150_000_000
#: of each file's writer: its libraries, and what it keeps for each pixel of a frame
_WRITERS = {"mp4": (30_000_000, 90), "mov": (30_000_000, 90), "webm": (60_000_000, 120)}
_OTHER_WRITER = (5_000_000, 12)
#: frames of 3 float32 channels that decoding holds between its chunks
_HELD, _HELD_SMOOTH = 18, 30
#: frames that wait for the writer, 3 bytes a pixel
_WAITING = 21


@dataclass(frozen=True, slots=True)
class Planner(PlannedModel):
    """Phases of a generation by a model on a device."""

    def meter(self, part: str) -> Meter:
        """A meter for a part's activations."""
        dtype = self.dtype_of(part)
        moves = "swept" if part == "vae" else "moved"
        return Meter(ITEMSIZE[dtype], has_scratch=self.is_cpu and dtype == "float32", moves=moves)

    def phases(self, setting: Setting, way: Way) -> tuple[Phase, ...]:
        """All phases of one generation, in order."""
        found = [self.loading(setting, way), self.text(setting, way)]
        if setting.has_known or takes_known_frames(self.parts["denoiser"].config):
            found.append(self.encoding(setting, way))
        return self.timed((*found, self.denoising(setting, way), self.decoding(setting, way)), setting)

    def timed(self, phases: Iterable[Phase], setting: Setting) -> tuple[Phase, ...]:
        """The phases of a run, in order, with their seconds; on a CPU with the memory that each takes first."""
        found, highest = [], self.program_bytes(setting)
        for phase in phases:
            if phase.name == "text":  # loading leaves as much, and mapped weights are pages of their files
                highest += self.calibration.ready_bytes
                highest += self.part_bytes("text") - self.unread() if self.is_mapped else 0
            work = dict(phase.work)
            if self.is_cpu and phase.host_bytes > highest:
                work["touched"] = phase.host_bytes - highest
                highest = phase.host_bytes
            seconds = self.calibration.seconds(phase.name, work, phase.disk_bytes)
            found.append(replace(phase, work=work, seconds=seconds))
        return tuple(found)

    def program_bytes(self, setting: Setting) -> int:
        """Bytes of the program and of what it imports for a setting."""
        return self.calibration.program + self.imports(setting) + self.program

    def phase(
        self,
        name: str,
        way: Way,
        setting: Setting,
        activations: int,
        host: int,
        work: Mapping[str, int],
        disk: int = 0,
    ) -> Phase:
        """host: bytes in the machine's memory whatever the device, next to the program's."""
        held = self.held(name, way) + setting.lora_bytes * ITEMSIZE[self.dtype] // 2
        program = self.program_bytes(setting)
        if self.kind != "cuda":
            total = program + held + activations + host
            return Phase(name, total, total, work, disk)
        if way.offload != "none":
            host += self.weights(ALL_PARTS)
        return Phase(name, CUDA_CONTEXT + held + activations, program + CUDA_HOST + host, work, disk)

    def imports(self, setting: Setting) -> int:
        """Bytes of the program beyond what every run has."""
        lora = LORA_PROGRAM if setting.lora_bytes else 0
        return max(lora, ENCODER_PROGRAM if IMAGE_ENCODER in self.parts else 0)

    def loading(self, setting: Setting, way: Way) -> Phase:
        """The weights, one part after the other."""
        if way.offload != "none":
            return self._loading_offloaded(setting, way)
        now = widest = 0
        order = [self.parts[name] for name in ("vae", "denoiser", "text")]
        for part in order:
            size, form = self.part_bytes(part.name), self.form_of(part.name)
            if part.name == "text":
                # files are mapped, and a file's pages stay until all its tensors are cast
                is_cast = part.is_cast_to(self.dtype) or form is not None
                passing = max(part.stored, default=0) if is_cast or self.kind == "cuda" else 0
                size = size if is_cast or self.kind == "cuda" else 0
            else:
                is_cast = part.is_cast_to(self.dtype_of(part.name)) or form is not None
                passing = part.largest if is_cast else 0
            widest = max(widest, now + passing + size)
            now += size if self.kind != "cuda" else 0
        stored = sum(sum(part.stored) for part in order)
        way = Way("loading", {"loading": () if self.kind != "cuda" else ("vae", "denoiser", "text")})
        return self.phase("loading", way, setting, 0, widest, {"swept": stored}, stored)

    def _loading_offloaded(self, setting: Setting, way: Way) -> Phase:
        """On the CPU what does not wait; for a GPU all weights, in the machine's memory."""
        passing = max(part.largest for part in self.parts.values())
        names = ("vae", "denoiser", "text")
        if self.is_cpu:
            host = sum(self.resident(name) for name in names) + passing
            read = sum(self.resident(name) for name in names)
        else:
            host, read = passing, sum(sum(self.parts[name].stored) for name in names)
        return self.phase(
            "loading", replace(way, holds={"loading": ()}), setting, 0, host, {"swept": read}, read
        )

    def text(self, setting: Setting, way: Way) -> Phase:
        """The prompts, and with guidance the negative prompt."""
        meter = self.meter("text")
        if self.parts["text"].config:  # a pipeline may have none
            walk_text(meter, self.parts["text"].config)
        activations = meter.peak + self.widened("text") - self.unread_in(way, "text")
        work = _times(self.with_weights(meter.work, "text", way), setting.batch + setting.branches - 1)
        return self.phase("text", way, setting, activations, 0, work)

    def encoding(self, setting: Setting, way: Way) -> Phase:
        """Known frames (V3: the mask and the masked video as well)."""
        vae, pixels = self.parts["vae"].config, setting.denoised[0] * setting.height * setting.width
        is_v3 = takes_known_frames(self.parts["denoiser"].config)
        # float32: the video and its mask, as they came and in -1..1, of all videos; reading takes 8 as well
        host = 8 * 4 * pixels * setting.batch
        meter = self.meter("vae")
        chunk = min(setting.frames, self.geometry.chunk_frames)
        height, width, tiles = self.tiled(setting, way)
        walk_encode(meter, vae, chunk, height, width)  # one video after the other
        pieces = -(-setting.frames // chunk)
        # pieces of one colour are encoded once, for all videos: those of what is made, and of their mask
        passes = 2 * (1 if setting.windows == 1 else 2)
        if setting.has_known:
            known = min(pieces, setting.known_pictures) or pieces
            # the frames, their mask, and what is seen of them, which is all of a picture
            kinds = 1 if not is_v3 else 2 if setting.frames == 1 else 3
            passes = kinds * known * setting.batch + (known < pieces) * (2 if is_v3 else 1)
        passes *= tiles
        work = Counter(_times(self.with_weights(meter.work, "vae", way), passes))
        encoder = self.parts.get(IMAGE_ENCODER)
        if encoder is not None and setting.has_known:
            # read for the picture and dropped; in float32 on the CPU, whatever the device
            host += 4 * encoder.elements
            tokens = (encoder.config["image_size"] // encoder.config["patch_size"]) ** 2 + 1
            work["linear"] += 2 * encoder.elements * tokens
        return self.phase(
            "encoding",
            way,
            setting,
            meter.peak - self.unread_in(way, "encoding"),
            host,
            dict(work),
        )

    def denoising(self, setting: Setting, way: Way) -> Phase:
        """All steps."""
        frames, passes = setting.denoised
        _, _, latents, rows, columns = self.geometry.latent_shape(1, frames, setting.height, setting.width)
        meter = self.meter("denoiser")
        step = StepInput(
            way.batch, setting.branches, latents, rows, columns, setting.text_tokens, setting.has_cache
        )
        walk_step(meter, self.parts["denoiser"].config, step, setting.lora)
        known = (
            5 * 4 * way.batch * self.geometry.latent_channels * latents * rows * columns * setting.has_known
        )
        count = setting.steps * passes * -(-setting.batch // way.batch)
        activations = meter.peak + known + self.widened("denoiser") - self.unread_in(way, "denoising")
        work = _times(self.with_weights(meter.work, "denoiser", way), count)
        return self.phase("denoising", way, setting, activations, 0, work)

    def decoding(self, setting: Setting, way: Way) -> Phase:
        """All chunks of one video after the other, and the file."""
        vae, geometry = self.parts["vae"].config, self.geometry
        height, width, tiles = self.tiled(setting, way)
        rows, columns = height // geometry.spatial_ratio, width // geometry.spatial_ratio
        work, peak = self.decoded(setting.frames, rows, columns, way)
        is_smooth = setting.is_smooth and setting.frames > geometry.chunk_frames
        if is_smooth:
            inner = setting.frames - geometry.chunk_frames  # encoded and decoded again
            for count, times in Counter(one.stop - one.start for one in geometry.pieces(inner)).items():
                again = self.meter("vae")
                walk_encode(again, vae, count, height, width)
                peak = max(peak, again.peak)
                work += Counter(_times(self.with_weights(again.work, "vae", way), times))
            work += self.decoded(inner, rows, columns, way)[0]
        frame = setting.height * setting.width
        size = ITEMSIZE[self.dtype_of("vae")]
        held = min(setting.frames, _HELD_SMOOTH if is_smooth else _HELD) * 3 * size * frame
        if tiles > 1:
            held += 3 * 3 * size * frame * min(setting.frames, geometry.chunk_frames)
        fixed, each = (
            (0, 3 * setting.frames * setting.batch)
            if setting.kind is None
            else _WRITERS.get(setting.kind, _OTHER_WRITER)
        )
        host = fixed + (each + 3 * min(setting.frames, _WAITING)) * frame
        activations = peak + held - self.unread_in(way, "decoding")
        work = _times(work, tiles * setting.batch)
        if self.is_cpu and setting.kind in _WRITERS:
            work["writers"] = 1
        return self.phase("decoding", way, setting, activations, host, work)

    def decoded(self, frames: int, rows: int, columns: int, way: Way) -> tuple[Counter[str], int]:
        """Work of decoding that many frames once, and the peak of its activations."""
        geometry = self.geometry
        latents = geometry.num_latents(frames)
        work, peak = Counter[str](), 0
        for piece, times in decoded_pieces(latents, geometry.chunk_latents, geometry.is_slice).items():
            meter, (count, before, after) = self.meter("vae"), piece
            walk_decode(meter, self.parts["vae"].config, count, rows, columns, before=before, after=after)
            work += Counter(_times(self.with_weights(meter.work, "vae", way), times))
            peak = max(peak, meter.peak)
        return work, peak

    def with_weights(self, work: Mapping[str, int], name: str, way: Way) -> Counter[str]:
        """The work of a pass through a part, with that of weights that wait or are kept in fewer bits."""
        added: Counter[str] = Counter({"swept": self.restored(name)})
        share = 0.5 if name == "vae" else 1.0  # encoder and decoder are about equal
        fetched, groups = (int(share * one) for one in (self.fetched(name, way), self.parts[name].groups))
        if not fetched:
            return Counter(work) + added
        if not self.is_cpu:
            return Counter(work) + added + Counter({"swept": fetched})
        # copied from the system's copy of the file to memory that is mapped anew
        return Counter(work) + added + Counter({"moved": 2 * fetched, "mapped": fetched, "reads": groups})

    def tiled(self, setting: Setting, way: Way) -> tuple[int, int, int]:
        """Height and width that the VAE works on at once, and the number of tiles."""
        if not way.is_tiled:
            return setting.height, setting.width, 1
        ratio = self.geometry.spatial_ratio
        tiles = count_tiles(setting.height, ratio) * count_tiles(setting.width, ratio)
        return tile_edge(setting.height), tile_edge(setting.width), tiles


def _times(work: Mapping[str, int], count: float) -> dict[str, int]:
    return {kind: int(amount * count) for kind, amount in work.items()}
