"""The shapes of what the API takes and gives; the OpenAPI document is made of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JobId = Annotated[str, Field(pattern="^video_[0-9a-f]{32}$")]
Seed = Annotated[int, Field(ge=-1, lt=1 << 32)] | Literal["random"]
#: prompts: orders.py counts bytes, which are at least as many
Text = Annotated[str, Field(max_length=16_384)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Progress = Annotated[int, Field(ge=0, le=100)]


class Shape(BaseModel):
    """An object of the API: these fields and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# errors


class ErrorDetail(Shape):
    """One error. code: for programs. param: the argument at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Shape):
    """The body of every answer that is an error."""

    error: ErrorDetail


# what clients ask for


class LoraUse(Shape):
    """A LoRA by name. scale: 1 is as trained; 0 is off."""

    name: Name
    scale: float = Field(default=1.0, ge=-100, le=100)


class _Settings(Shape):
    negative_prompt: Text | None = None
    model: Name | None = Field(
        default=None, description="A name from /v1/models; the server's first if left out."
    )
    size: str | None = Field(
        default=None, pattern="^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$", description="WIDTHxHEIGHT in pixels."
    )
    seed: Seed | None = Field(default=None, description="Drawn if left out, -1 or random.")
    steps: int | None = Field(default=None, ge=1, le=1000)
    guidance: float | None = Field(default=None, ge=0, le=1000)
    sampler: Name | None = None
    loras: list[LoraUse] | None = None
    step_cache: str | None = Field(default=None, max_length=200, description="Such as teacache:0.1, or none.")


#: seconds, or a time such as 1.5s or 36f; the text from then on
TimedText = Annotated[list[Any], Field(min_length=2, max_length=2)]
_Digits = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}(\.[0-9]{1,3})?$")]
_Seconds = _Digits | Annotated[float, Field(gt=0, le=100_000)]


class _Order(_Settings):
    prompt: Text
    seconds: _Seconds | None = Field(
        default=None, description="Rounded to a number of frames that the model can make."
    )
    num_frames: int | None = Field(default=None, ge=1, description="Wins over `seconds`.")
    fps: float | None = Field(default=None, gt=0, le=1000)
    smooth: bool | None = None
    strength: float | None = Field(
        default=None, gt=0, le=1, description="Share of the steps that a video from a picture takes."
    )
    fit: Literal["crop", "pad", "stretch"] | None = Field(
        default=None, description="Fits a picture to the size; crop if left out."
    )
    prompts_at: Text | list[TimedText] | None = Field(
        default=None,
        description="Later prompts: '1.5s: a blue circle | 36f: ...', or pairs of time and text.",
    )
    window: int | None = Field(
        default=None,
        ge=1,
        description="Frames that are denoised at once; a longer video is made in several windows.",
    )
    loop: bool | None = Field(default=None, description="The last frames lead into the first.")
    join: Literal["latents", "pixels"] | None = Field(default=None, description="How windows are joined.")


class JobOrder(_Order):
    """A video, or a picture with `num_frames` 1; what is left out is the model's own."""

    image_of: JobId | None = Field(default=None, description="A job whose pictures are used again.")


class PlanOrder(_Order):
    """An order whose memory and time are planned."""

    has_picture: bool | None = Field(default=None, description="It will start from a picture.")


class VideoOrder(JobOrder):
    """A request of the OpenAI videos API; what OpenAI's lacks goes into `extra_body` of its clients."""


class RemixOrder(JobOrder):
    """A new prompt for an earlier video; its other settings, the seed included, stay unless they are given."""


class ImageOrder(_Settings):
    """One picture. Made at once: the answer comes when it is ready."""

    prompt: Text
    n: Literal[1] | None = 1
    response_format: Literal["b64_json"] | None = "b64_json"
    output_format: Literal["png"] | None = "png"
    user: str | None = Field(default=None, max_length=256, description="Not used.")


# the OpenAI API's answers


class VideoError(Shape):
    """The reason why a video failed."""

    code: str
    message: str


class Video(Shape):
    """A video as OpenAI's clients know it. A cancelled one is failed, with code `cancelled`."""

    id: JobId
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: Progress
    created_at: int
    completed_at: int | None
    expires_at: None = None
    prompt: str
    seconds: str
    size: str
    error: VideoError | None
    remixed_from_video_id: str | None


class VideoList(Shape):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(Shape):
    """The answer to a deletion."""

    id: JobId
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class Model(Shape):
    """A model by name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(Shape):
    """All models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Image(Shape):
    """A picture in base 64."""

    b64_json: str


class Images(Shape):
    """The answer to a request for a picture."""

    created: int
    data: list[Image]
    output_format: Literal["png"] = "png"
    size: str


# the page's API


class JobRequest(Shape):
    """The request of a job, complete: asked again it gives the same video.

    image, image_end: addresses on this server of the pictures that it starts and ends with.
    """

    prompt: str
    negative_prompt: str
    model: str
    width: int
    height: int
    num_frames: int
    fps: float
    seed: int
    steps: int
    guidance: float
    sampler: str
    loras: list[LoraUse]
    step_cache: str | None
    smooth: bool
    image: str | None
    image_end: str | None
    strength: float | None
    fit: str | None
    prompts_at: list[list[str]] | None
    window: int | None
    loop: bool | None
    join: str | None


class JobError(Shape):
    """The reason why a job failed."""

    code: str
    message: str


class JobResult(Shape):
    """The products of a completed job: addresses on this server."""

    video: str
    thumbnail: str
    spritesheet: str
    recipe: str
    kind: Literal["mp4", "png"]
    bytes: int
    sha256: str
    timings: dict[str, float]
    notes: list[str]


class JobView(Shape):
    """A job as the page knows it. seconds_left: an estimate, None if there is nothing to go by."""

    id: JobId
    state: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    phase: str
    done: int
    total: int
    progress: Progress
    position: int | None
    created_at: int
    started_at: int | None
    completed_at: int | None
    seconds_left: float | None
    request: JobRequest
    error: JobError | None
    result: JobResult | None
    remixed_from: str | None
    preview: str | None


class JobList(Shape):
    """A page of jobs."""

    jobs: list[JobView]
    has_more: bool


class PlanPhase(Shape):
    """A part of a job: loading, text, encoding, denoising or decoding. bytes: the device's memory at its widest moment.

    seconds: None if the machine is not measured.
    """

    name: str
    bytes: int
    flops: int
    seconds: float | None


class PlanView(Shape):
    """A plan. peak_bytes, usable_bytes: of the device, which counts what loaded models would give way to.

    host_peak_bytes: of the machine's memory. largest: settings that fit, if the job does not; message says the same
    as a line.
    """

    fits: bool
    device: str
    peak_bytes: int
    usable_bytes: int
    host_peak_bytes: int
    flops: int
    seconds: float | None
    phases: list[PlanPhase]
    largest: list[str]
    message: str | None


class JobDeleted(Shape):
    """The answer to a deletion."""

    id: JobId
    deleted: Literal[True] = True


class Defaults(Shape):
    """Settings that suit a model."""

    width: int
    height: int
    num_frames: int
    steps: int
    guidance: float
    sampler: str
    fps: float
    negative_prompt: str


class ModelAbout(Shape):
    """A model and what may be asked of it. frames: allowed numbers of frames at its own size."""

    name: str
    defaults: Defaults
    frames: list[int]
    size_multiple: int
    max_pixels: int
    max_steps: int


class SamplerAbout(Shape):
    """A sampler."""

    name: str
    summary: str


class LoraAbout(Shape):
    """A LoRA. model: the model that it was trained for, if it says so."""

    name: str
    model: str | None
    trigger_words: list[str]
    summary: str


class About(Shape):
    """Everything that a form needs."""

    version: str
    models: list[ModelAbout]
    samplers: list[SamplerAbout]
    loras: list[LoraAbout]
    limits: dict[str, Any]
    step_caches: list[str]


class SamplerList(Shape):
    """All samplers."""

    samplers: list[SamplerAbout]


class LoraList(Shape):
    """All LoRAs."""

    loras: list[LoraAbout]


class PluginAbout(Shape):
    """A part of a plugin."""

    name: str
    kind: str
    package: str
    version: str
    state: str


class PluginList(Shape):
    """All parts of all plugins."""

    plugins: list[PluginAbout]


class Recipe(JobRequest):
    """The request that made a file. unknown: models, LoRAs and pictures of it that are not here."""

    unknown: list[str]


class Worker(Shape):
    """A worker process."""

    name: str
    device: str
    state: Literal["starting", "ready", "busy", "down"]


class Health(Shape):
    """The server answers."""

    status: Literal["ok"] = "ok"
    workers: list[Worker]
    queued: int
