// The form of a new video.
import {$,el,keep,kept,message,options,say} from "./dom.js"
import {loraRows,offerLoras,setLoras,setUpLoras} from "./loras.js"
import {hasPictures,setUpPictures,takeFrom} from "./pictures.js"
import {draftSteps,framesText} from "./settings.js"
import {plan} from "./api.js"
import {duration,number,onLanguage,t} from "./words.js"

const EXAMPLES={tiny:"a red circle moves right"}
const EXAMPLE="a sailing boat crosses a calm bay at sunset, slow camera pan"
const RATIOS=[[1,1],[16,9],[9,16],[4,3],[3,4]]
const NUMBERS=["steps","guidance","fps","seed","strength"]

let server={models:[]}
let asked=0 // the timer of the next plan

export const example=()=>EXAMPLES[$.model.value]??EXAMPLE
export const modelOf=name=>server.models.find(model=>model.name===name)
const model=()=>modelOf($.model.value)
const fields=()=>document.querySelectorAll("[data-param]")

// `submit(steps)` sends the form; `lastSeed()` is what a kept seed starts from.
export function setUpForm(submit,lastSeed){
	setUpPictures() // first: its fields get places for errors, too
	for(const field of fields()){
		const {param}=field.dataset
		if(!field.querySelector("legend, label:not(.pair label)")) field.prepend(el("label",{for:param,"data-t":param}))
		field.append(el("p.error",{id:`${param}_error`}))
		for(const input of field.querySelectorAll("input, textarea, select"))
			input.setAttribute("aria-describedby",`${param}_error`)
	}
	$.form.onsubmit = event=>{
		event.preventDefault()
		submit()
	}
	$.draft.onclick = ()=>submit(draftSteps(model()))
	document.addEventListener("keydown",event=>{
		if(event.key!=="Enter"||!(event.ctrlKey||event.metaKey)||$.confirm.open||$.generate.disabled) return
		event.preventDefault()
		submit()
	})
	$.form.oninput = ({target})=>{
		const field=target.closest("[data-param]")
		if(field) clearError(field)
		if(target===$.seed) $.keep.checked = $.seed.value!==""
		if(target===$.keep) $.seed.value = $.keep.checked ? (lastSeed()??crypto.getRandomValues(new Uint32Array(1))[0]) :""
		if(target===$.model){
			if(["",EXAMPLE,...Object.values(EXAMPLES)].includes($.prompt.value.trim())) $.prompt.value = example()
			fill(defaults())
		}
		if(target===$.size||target===$.fps) draw()
		save()
	}
	$.reset.onclick = ()=>fill(defaults())
	$.more.ontoggle = save
	setUpLoras()
	onLanguage(draw)
}

export function offer(about){
	const isFirst=!server.models.length
	const before=$.model.value
	server = about
	options($.model,server.models.map(({name})=>[name,name]))
	options($.sampler,server.samplers.map(({name,summary})=>[name,name,summary]))
	$.generate.disabled = $.draft.disabled = !model()
	if(!model()) return
	if(isFirst){
		const last=kept("ea.form")
		$.prompt.value = example()
		fill(defaults())
		try {
			const typed=JSON.parse(last)
			if(modelOf(typed.model)) fill(typed)
			if(typed.pictures) say($.pictures_note,t("pictures.lost"))
			$.pictures.open = typed.pictures
		} catch {}
	} else if($.model.value!==before) fill(defaults())
	else draw()
}

const defaults=()=>({negative_prompt:"",...model().defaults,seed:null,loras:[],step_cache:null,smooth:true,fit:"crop",strength:null})

// Sizes of about the model's own area, in its multiples.
function sizes({defaults:{width,height},size_multiple:step,max_pixels}){
	const found=new Map([[`${width}x${height}`,`${width} × ${height}`]])
	for(const ratio of RATIOS){
		const unit=Math.sqrt((width*height) / (ratio[0]*ratio[1])) / step
		const [w,h]=ratio.map(side=>Math.max(1,Math.round(side*unit))*step)
		if(w*h<=max_pixels&&!found.has(`${w}x${h}`)) found.set(`${w}x${h}`,`${w} × ${h} (${ratio.join(":")})`)
	}
	return [...found.set("custom",t("size.custom"))]
}

function draw(){
	$.seed.placeholder = t("seed.random")
	if(!model()) return
	options($.size,sizes(model()))
	$.custom.hidden = $.size.value!=="custom"
	$.width.step = $.width.min = $.height.step = $.height.min = model().size_multiple
	$.steps.max = model().max_steps
	const fps=Number($.fps.value)||model().defaults.fps
	const {frames,defaults}=model()
	const n=Number($.num_frames.value)
	options($.num_frames,frames.map(n=>[n,framesText(n,fps)]),frames.includes(n) ? n :defaults.num_frames)
	const cache=$.step_cache.value
	const caches=new Set(["none",...server.step_caches.map(one=>one.name??one),cache||"none"])
	options($.step_cache,[...caches].map(name=>[name,name]))
	offerLoras(server.loras,$.model.value)
	$.draft.textContent = t("draft",{n:draftSteps(model())})
}

// Fills the form from a request, that of job `id` with its pictures; what is missing stays. Returns names that are not here.
export function fill(request,id){
	if(id) takeFrom(request,id)
	if(modelOf(request.model)) $.model.value = request.model
	for(const id of ["prompt","negative_prompt","width","height",...NUMBERS])
		if(id in request) $[id].value = request[id]??""
	$.sampler.value = request.sampler??$.sampler.value
	const unknown=$.sampler.selectedIndex<0 ? [request.sampler] :[]
	if(unknown.length) $.sampler.value = model().defaults.sampler
	if("step_cache" in request){
		const cache=request.step_cache||"none" // a file may have a threshold of its own: teacache:0.15
		options($.step_cache,[[cache,cache]])
	}
	draw()
	if(request.width){
		$.size.value = `${request.width}x${request.height}`
		if($.size.selectedIndex<0) $.size.value = "custom"
		$.custom.hidden = $.size.value!=="custom"
	}
	const n=request.num_frames
	if(n&&!model().frames.includes(n)) $.num_frames.append(el("option",{value:n},`${n}`)) // the server refuses it
	if(n) $.num_frames.value = n
	if("seed" in request) $.keep.checked = request.seed!==null
	if("smooth" in request) $.smooth.checked = request.smooth!==false
	if(request.fit) $.fit.value = request.fit
	if("more" in request) $.more.open = request.more
	clearErrors()
	if(request.loras) unknown.push(...setLoras(request.loras.map(row=>({...row}))))
	save()
	return unknown
}

function typed(){
	const [width,height]=$.size.value==="custom" ? [$.width.value,$.height.value] :$.size.value.split("x")
	const request={
		prompt:$.prompt.value,negative_prompt:$.negative_prompt.value,model:$.model.value,
		width,height,num_frames:Number($.num_frames.value),sampler:$.sampler.value,
		step_cache:$.step_cache.value,smooth:$.smooth.checked,loras:loraRows(),fit:$.fit.value,
	}
	for(const id of NUMBERS) request[id] = $[id].value==="" ? null :Number($[id].value)
	return request
}

function save(){
	if(!model()) return
	keep("ea.form",JSON.stringify({...typed(),more:$.more.open,pictures:hasPictures()}))
	clearTimeout(asked)
	asked = setTimeout(showPlan,400)
}

// Memory and time of what is typed, while it can be made.
async function showPlan(){
	const mine=asked
	const image=hasPictures()
	const found=await plan({...fieldsOf({...typed(),image}),has_picture:image}).catch(()=>null)
	if(mine!==asked) return
	const time=found?.seconds ? ` · ${duration(found.seconds)}` :""
	say($.plan,found ? found.message??t("plan",{gb:number(found.peak_bytes/1e9)})+time :"")
}

// Fields to send, or null if one is no number; that is shown.
export function read(){
	clearErrors()
	const bad=[...NUMBERS,"width","height"].find(id=>$[id].validity.badInput)
	if(!bad) return fieldsOf({...typed(),image:hasPictures()})
	showError({message:t("error.number"),param:bad,own:true})
	return null
}

// Fields to send, from a request as jobs and files have it; the pictures are those of job `id`.
export function fieldsOf({width,height,image,image_end,fit,strength,...rest},id){
	const start=image||image_end ? {fit,strength,image_of:id} :{}
	const given=Object.entries({...rest,...start,size:`${width}x${height}`}).filter(([,value])=>value != null)
	return Object.fromEntries(given.filter(([name,value])=>name!=="step_cache"||value!=="none"))
}

export function showError({message:text,param,own}){
	let name=(param??"").split(/[.[]/)[0]
	name = {width:"size",height:"size",seconds:"num_frames",image:"input_reference",image_of:"input_reference",image_end:"input_reference_end"}[name]??name
	const field=[...fields()].find(one=>one.dataset.param===name)
	const place=field?.querySelector(".error")??$.form_error
	place.replaceChildren(own ? text :message(text))
	field?.closest("details")?.setAttribute("open","")
	const inputs=[...(field?.querySelectorAll("input, textarea, select")??[])].filter(one=>one.offsetParent)
	for(const input of inputs) input.setAttribute("aria-invalid","true")
	inputs[0]?.focus()
}

function clearError(field){
	field.querySelector(".error").replaceChildren()
	for(const input of field.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid")
}

export function clearErrors(){
	$.form_error.replaceChildren()
	fields().forEach(clearError)
}
