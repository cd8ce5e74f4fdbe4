// Settings of a job as people read them, in the result and in the comparison.
import { number, t } from "./words.js";

export const framesText = (n, fps) =>
	n === 1 ? t("frames.picture") : t("frames", { n, seconds: number(n / fps, 2) });

/** Rows [name of the setting, text]; what is off has an empty text. */
export const settingRows = (request) => [
	["negative_prompt", request.negative_prompt],
	["model", request.model],
	["size", `${request.width} × ${request.height}`],
	["num_frames", framesText(request.num_frames, request.fps)],
	["fps", `${number(request.fps, 3)} fps`],
	["sampler", request.sampler],
	["steps", `${request.steps}`],
	["guidance", number(request.guidance, 3)],
	["seed", `${request.seed}`],
	["loras", (request.loras ?? []).map(({ name, scale }) => `${name} ${number(scale, 2)}`).join(", ")],
	["step_cache", request.step_cache ?? ""],
];

export const bytesText = (bytes) =>
	bytes < 1e6 ? `${number(bytes / 1e3)} kB` : `${number(bytes / 1e6)} MB`;

/** File name for a job's result, from the words of its prompt as `ea generate` does it. */
export const fileName = (job, kind) =>
	`${(job.request.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["video"]).join("-").slice(0, 60)}.${kind}`;

/** Few steps, to see what a prompt does: a quarter of the model's own. */
export const draftSteps = (model) => Math.max(4, Math.round(model.defaults.steps / 4));
