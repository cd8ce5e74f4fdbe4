// Settings of a job as people read them.
import {el} from "./dom.js"
import {number,t} from "./words.js"

export const framesText=(n,fps)=>
	n===1 ? t("frames.picture") :t("frames",{n,seconds:number(n / fps,2)})

const thumb=url=>(url ? el("img.thumb",{src:url,alt:""}) :"")

// Rows [name of the setting, text or picture]; what is off has an empty text.
export const settingRows=request=>[
	["input_reference",thumb(request.image)],
	["input_reference_end",thumb(request.image_end)],
	["fit",request.image||request.image_end ? t(`fit.${request.fit??"crop"}`) :""],
	["strength",request.strength ? number(request.strength,2) :""],
	["negative_prompt",request.negative_prompt],
	["model",request.model],
	["size",`${request.width} × ${request.height}`],
	["num_frames",framesText(request.num_frames,request.fps)],
	["fps",`${number(request.fps, 3)} fps`],
	["sampler",request.sampler],
	["steps",`${request.steps}`],
	["guidance",number(request.guidance,3)],
	["seed",`${request.seed}`],
	["loras",(request.loras??[]).map(({name,scale})=>`${name} ${number(scale, 2)}`).join(", ")],
	["step_cache",request.step_cache??""],
]

export const bytesText=bytes=>
	bytes<1e6 ? `${number(bytes / 1e3)} kB` :`${number(bytes / 1e6)} MB`

// File name as `ea generate` makes it.
export const fileName=(job,kind)=>
	`${(job.request.prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu)??["video"]).join("-").slice(0, 60)}.${kind}`

// Few steps, to see what a prompt does.
export const draftSteps=model=>Math.max(4,Math.round(model.defaults.steps / 4))
