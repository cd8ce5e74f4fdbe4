"""Which stream of a file is its video, and its frames without transparency."""

from __future__ import annotations

from typing import Any

from ea_runtime.video.pictures import Colour

_WHITE: Colour = (255, 255, 255)
#: FFmpeg's own decoders of these codecs leave out the transparency that WebM has beside the packets.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def best_video(container: Any) -> Any | None:
    """The stream of an open PyAV container that is its video; None if there is none, only covers or thumbnails.

    Of several, one that moves before a still, then the file's default, then the one with most pixels, then the first.
    """
    streams = [stream for stream in container.streams.video if not is_cover(stream)]
    return max(streams, key=_rank, default=None)


def is_cover(stream: Any) -> bool:
    """True for a picture that stands for the file: a cover or a thumbnail."""
    kind = type(stream.disposition)
    return bool(stream.disposition & (kind.attached_pic | kind.timed_thumbnails | kind.still_image))


def has_alpha(frame: Any) -> bool:
    """True if the format of a frame of FFmpeg has transparency."""
    return frame.format.has_palette or any(part.is_alpha for part in frame.format.components)


class FrameDecoder:
    """Decodes the packets of a stream, in order from a key frame on, to frames without transparency.

    background: what shows where a frame is transparent. saw_alpha: a frame was transparent somewhere.
    """

    def __init__(self, stream: Any, background: Colour = _WHITE) -> None:
        self._context, self._background, self.saw_alpha = _decoder_of(stream), background, False

    def __call__(self, packet: Any | None) -> list[Any]:
        """The frames that are ready; None, or the empty packet after the last, ends the stream.

        Raises decoding errors.
        """
        if packet is not None and not packet.size:
            if packet.dts is not None or packet.pts is not None:
                return []  # a container's note of a frame that was left out
            packet = None
        return [self._opaque(frame) for frame in self._context.decode(packet)]

    def _opaque(self, frame: Any) -> Any:
        import numpy as np

        if not has_alpha(frame):
            return frame
        clear = frame.reformat(format="rgba")  # which keeps times and rotation
        rows = np.frombuffer(clear.planes[0], np.uint8).reshape(clear.height, -1)
        pixels = rows[:, : 4 * clear.width].reshape(clear.height, clear.width, 4)
        if pixels[..., 3].min() < 255:
            self.saw_alpha = True
            alpha = pixels[..., 3:].astype(np.uint16)
            laid = pixels[..., :3] * alpha + np.array(self._background, np.uint16) * (255 - alpha)
            pixels[..., :3] = (laid + 127) // 255
        return clear.reformat(format="rgb24")


def _decoder_of(stream: Any) -> Any:
    from av import CodecContext, FFmpegError

    own = stream.codec_context
    if own is None:
        raise ValueError("this build of FFmpeg has no decoder for its video")
    name = _ALPHA_DECODERS.get(own.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        return own
    try:
        decoder = CodecContext.create(name, "r")
    except (FFmpegError, ValueError) as error:
        raise ValueError("this build of FFmpeg cannot read the transparency of its video") from error
    decoder.extradata, decoder.thread_count = own.extradata, own.thread_count
    return decoder


def _rank(stream: Any) -> tuple[bool, bool, bool, int, int]:
    context = stream.codec_context
    is_default = bool(stream.disposition & type(stream.disposition).default)
    pixels = context.width * context.height if context is not None else 0
    return context is not None, stream.frames != 1, is_default, pixels, -stream.index
