"""The training set `easyanimate`: pictures and videos of a JSON or CSV list, cut and resized for training.

A sample is a function of (index, seed, bucket). Small clips are kept decoded; of others, only the window is read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ea_data.children.supervisor import Failure, Supervisor
from ea_data.media.reader import Cut, Probe, probe, read
from ea_data.training.buckets import bucket_size, fit_frames, window_starts
from ea_data.training.dataset_json import Entries, read_list
from ea_data.training.headers import HeaderFile
from ea_runtime.errors import UserError
from ea_runtime.training.data.dataset import BadSample, Bucket, Item, Sample, SetOptions, draw_start

#: A clip of more bytes, at its bucket's size, is not kept whole.
KEEP_CLIP = 8 << 20
#: Files whose headers tell whether a list has its sizes from before the rotation.
LOOKED_AT = 32
#: Pictures and videos with a shorter side, in pixels, show next to nothing.
SMALLEST = 32


class EasyAnimateSet:
    """A set in EasyAnimate's JSON; see ea_runtime.training.data.dataset.TrainingSet.

    Sizes and numbers of frames that the list lacks are read from the files when `buckets` is called, and remembered
    in the set's folder. All sizes are, if the list has them from before the rotation of EXIF or a phone's video, which
    up to LOOKED_AT files, spread over the list, tell. An unreadable file gets the most frequent bucket of its kind, so
    that it is asked for, found bad and counted.
    """

    def __init__(self, options: SetOptions) -> None:
        self.options = options
        rows = read_list(options.path, options.root)
        wanted = {"both": (True, False), "videos": (True,), "pictures": (False,)}[options.kinds]
        chosen = [i for i, is_video in enumerate(rows.videos) if is_video in wanted][: options.limit or None]
        if not chosen:
            raise UserError(
                f"`data.kinds` is {options.kinds!r}, but {options.path!r} has none; add some or choose 'both'"
            )
        self.items: Sequence[Item] = rows if len(chosen) == len(rows) else rows.take(chosen)
        videos = [i for i, is_video in enumerate(self._entries.videos) if is_video]
        self._order = [*range(len(chosen)), *(videos * (options.repeat_videos - 1))]
        self._probes: dict[int, Probe | str] = {}  # by entry; a string says why not
        self._lost: dict[int, str] = {}  # by entry: how it ended the process that decoded it
        self._kept: dict[tuple[int, int, int], np.ndarray] = {}
        self._room = options.keep_mib << 20
        self._child: Supervisor | None = None
        self._owner = 0
        self.keeps_headers = True  # in the set's folder, for the next run
        self._is_turned: bool | None = None  # the sizes of the list, once it is known

    def __len__(self) -> int:
        return len(self._order)

    def item(self, index: int) -> Item:
        return self.items[self._order[index]]

    def buckets(self, size: int | None = None, num_frames: int | None = None) -> list[Bucket]:
        options, entries = self.options, self._entries
        size = options.size if size is None else size
        num_frames = options.num_frames if num_frames is None else num_frames
        self._check_sides()
        self._probe_unknown(num_frames > 1)
        made: dict[Any, Bucket] = {}  # one object for each bucket, not for each sample
        found: list[Bucket | None] = []
        for entry, is_video in enumerate(entries.videos):
            probed = self._probe(entry)
            if isinstance(probed, str):
                found.append(None)
                continue
            key = (is_video, *probed)
            if key not in made:
                frames = self._fit(probed.num_frames, num_frames) if is_video else 1
                height, width = bucket_size(probed.height, probed.width, size, options.multiple)
                made[key] = Bucket("video" if is_video else "image", frames, height, width)
            found.append(made[key])
        kinds = [self._most_frequent(found, is_video, size, num_frames) for is_video in (False, True)]
        filled = [bucket or kinds[is_video] for bucket, is_video in zip(found, entries.videos, strict=True)]
        return [filled[entry] for entry in self._order]

    def remarks(self) -> list[str]:
        """Lines that a run says at its start, after `buckets`."""
        lines = []
        if self._is_turned:
            lines.append(
                "the list has sizes from before the rotation of some files; all sizes are read from the files"
            )
        sizes = [
            probe for entry in range(len(self.items)) if not isinstance(probe := self._probe(entry), str)
        ]
        small = sum(0 < min(size.width, size.height) < SMALLEST for size in sizes)
        if small:
            lines.append(
                f"{small} of {len(self.items)} files have a side below {SMALLEST} pixels and are enlarged"
            )
        untyped = self._entries.typed.count(False)
        if untyped:
            lines.append(
                f"{untyped} of {len(self.items)} entries have no `type`; it was read from the files' bytes"
            )
        return lines

    def starts(self, index: int, bucket: Bucket) -> range:
        entry, options = self._order[index], self.options
        if bucket.kind == "image":
            return range(1)
        probed = self._probe(entry)
        count = bucket.num_frames if isinstance(probed, str) else probed.num_frames
        window = (bucket.num_frames, options.stride, options.middle, options.start_multiple)
        return window_starts(count, *window) or range(1)

    def read(self, index: int, start: int, bucket: Bucket) -> np.ndarray:
        return self._read(self._order[index], start, bucket, (0.5, 0.5))

    def sample(self, index: int, seed: int, bucket: Bucket) -> Sample:
        entry = self._order[index]
        start = draw_start(self.starts(index, bucket), index, seed)
        place = (0.5, 0.5)
        if self.options.crop == "random":
            # a separate stream: the start stays that of draw_start
            rng = np.random.default_rng(np.random.SeedSequence([seed, index, 1]))
            place = (rng.random(), rng.random())
        return Sample(self._read(entry, start, bucket, place), self._entries.texts[entry], start)

    def __getstate__(self) -> dict[str, Any]:
        """For a worker: without the kept clips and the child, which belong to this process."""
        fresh = {"_kept": {}, "_room": self.options.keep_mib << 20, "_child": None, "_owner": 0}
        return self.__dict__ | fresh

    @property
    def _entries(self) -> Entries:
        assert isinstance(self.items, Entries)
        return self.items

    # -- reading

    def _read(self, entry: int, start: int, bucket: Bucket, place: tuple[float, float]) -> np.ndarray:
        """Through the kept clips, if this one is small and its crop is not drawn at random."""
        probed = self._probe(entry)
        stride = self.options.stride if bucket.kind == "video" else 1
        if not isinstance(probed, str):
            if (probed.height, probed.width) == (bucket.height, bucket.width):
                place = (0.5, 0.5)  # nothing is cut off
            stop = start + (bucket.num_frames - 1) * stride + 1
            whole = bucket._replace(num_frames=probed.num_frames if bucket.kind == "video" else 1)
            if place == (0.5, 0.5) and stop <= whole.num_frames:
                kept = self._whole(entry, whole)
                if kept is not None:
                    return kept[start:stop:stride]
        return self._decode(entry, start, bucket, stride, place)

    def _whole(self, entry: int, whole: Bucket) -> np.ndarray | None:
        """The whole clip, kept from now on; None without room for it, or if it does not decode whole."""
        key = (entry, whole.height, whole.width)
        if key not in self._kept:
            num_bytes = whole.num_frames * whole.height * whole.width * 3
            if num_bytes > min(KEEP_CLIP, self._room):
                return None
            try:
                frames = self._decode(entry, 0, whole, 1, (0.5, 0.5))
            except BadSample:
                return None  # a window of it may still decode
            self._room -= frames.nbytes
            self._kept[key] = frames
        return self._kept[key]

    def _decode(
        self, entry: int, start: int, bucket: Bucket, stride: int, place: tuple[float, float]
    ) -> np.ndarray:
        entries = self._entries
        if entry in self._lost:
            raise BadSample(entries.names[entry], self._lost[entry])
        path, says = entries.root / entries.names[entry], (entries.widths[entry], entries.heights[entry])
        window = (start, bucket.num_frames, bucket.height, bucket.width, stride, place)
        kind = "video" if entries.videos[entry] else "image"
        options = self.options
        cut = Cut(path, entries.root, *window, says, options.strict, options.background_colour, kind)
        try:
            result = read(cut) if self.options.decode == "inline" else self._supervisor().call(cut)
        except (ValueError, OSError) as error:
            raise BadSample(entries.names[entry], str(error)) from error
        if isinstance(result, Failure):
            if result.kind != "error":  # it ended two children, and gets no third
                self._lost[entry] = result.reason
            raise BadSample(entries.names[entry], result.reason)
        return result

    def _supervisor(self) -> Supervisor:
        """This process's child; a fork does not use its parent's."""
        if self._child is None or self._owner != os.getpid():
            self._child = Supervisor("ea_data.media.reader:serve", timeout=self.options.timeout)
            self._owner = os.getpid()
        return self._child

    def close(self) -> None:
        """Ends the child. It starts again if more is read."""
        if self._child is not None and self._owner == os.getpid():
            self._child.close()
        self._child = None

    # -- sizes and numbers of frames

    def _probe(self, entry: int) -> Probe | str:
        """The numbers of the list, or of the file; a string says why it could not be read."""
        entries = self._entries
        if entry not in self._probes and self._needs(entry, with_frames=True):
            self._probe_files([entry])
        if entry in self._probes:
            return self._probes[entry]
        return Probe(entries.widths[entry], entries.heights[entry], entries.num_frames[entry] or 1)

    def _needs(self, entry: int, with_frames: bool) -> bool:
        entries = self._entries
        has_size = entries.widths[entry] and entries.heights[entry]
        has_frames = entries.num_frames[entry] or not entries.videos[entry]
        return not has_size or (with_frames and not has_frames)

    def _probe_unknown(self, with_frames: bool) -> None:
        unknown = [i for i in range(len(self.items)) if i not in self._probes and self._needs(i, with_frames)]
        if unknown:
            self._probe_files(unknown)

    def _check_sides(self) -> None:
        """Drops the list's sizes if some file has its width and height the other way round."""
        rows = self._entries
        if self._is_turned is not None:
            return
        sizes = list(zip(rows.widths, rows.heights, strict=True))
        known = [i for i, (width, height) in enumerate(sizes) if width and height and width != height]
        some = [known[i * len(known) // LOOKED_AT] for i in range(LOOKED_AT)] if known else []
        asked = [(i, True) for i in dict.fromkeys(some)]
        found = [(sizes[i], header) for i, header in self._headers(asked) if isinstance(header, Probe)]
        self._is_turned = any(size == (header.height, header.width) for size, header in found)
        if self._is_turned:
            rows.widths, rows.heights = [0] * len(rows), [0] * len(rows)

    def _probe_files(self, entries: list[int]) -> None:
        """Probes files for the numbers that the list lacks."""
        rows = self._entries
        for i, found in self._headers([(i, not (rows.widths[i] and rows.heights[i])) for i in entries]):
            self._fill(i, found)

    def _headers(self, asked: list[tuple[int, bool]]) -> Iterator[tuple[int, Probe | str]]:
        """The headers of (entry, with its size), or why there is none; findings of earlier runs are reused."""
        rows = self._entries
        remembered = HeaderFile(rows.root)
        missing = []
        for i, with_size in asked:
            known = remembered.get(rows.names[i], with_size)
            if known is None:
                missing.append((i, with_size))
            else:
                yield i, known
        for (i, _), result in zip(missing, self._probe_all(missing), strict=True):
            if isinstance(result, Probe):
                remembered.put(rows.names[i], result)
            yield i, result
        if self.keeps_headers:
            remembered.save()

    def _probe_all(self, missing: list[tuple[int, bool]]) -> Iterator[Probe | str]:
        rows = self._entries
        tasks = ((rows.root / rows.names[i], rows.root, with_size) for i, with_size in missing)
        if self.options.decode == "inline":
            for task in tasks:
                try:
                    yield probe(*task)
                except (ValueError, OSError) as error:
                    yield str(error)
            return
        for result in self._supervisor().map(tasks):
            yield result.reason if isinstance(result, Failure) else result

    def _fill(self, entry: int, found: Probe | str) -> None:
        rows = self._entries
        if isinstance(found, Probe):
            width, height = rows.widths[entry] or found.width, rows.heights[entry] or found.height
            if not width or not height:
                found = "its header has no size"
            else:
                found = Probe(width, height, rows.num_frames[entry] or found.num_frames)
        self._probes[entry] = found

    # -- buckets

    def _fit(self, count: int, num_frames: int) -> int:
        o = self.options
        return fit_frames(count, num_frames, o.chunk, o.stride, o.middle, o.start_multiple)

    def _most_frequent(
        self, found: list[Bucket | None], is_video: bool, size: int, num_frames: int
    ) -> Bucket:
        kind = "video" if is_video else "image"
        counts = Counter(bucket for bucket in found if bucket is not None and bucket.kind == kind)
        if counts:
            return counts.most_common(1)[0][0]
        side = size or self.options.multiple
        height, width = bucket_size(side, side, side, self.options.multiple)
        return Bucket(kind, num_frames if is_video else 1, height, width)
