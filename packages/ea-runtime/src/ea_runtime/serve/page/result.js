// The job on the stage.
import {$,button,calm,el,message,say} from "./dom.js"
import {example,modelOf} from "./form.js"
import {isActive,state} from "./jobs.js"
import {bytesText,draftSteps,fileName,settingRows} from "./settings.js"
import {duration,language,number,t} from "./words.js"

export function statusOf({state,phase,position,done,total}){
	if(state!=="in_progress"||!phase) return t(`state.${state}`,{n:position??1})
	const counts=phase==="denoising"||phase==="decoding"
	return t(`phase.${phase}`)+(counts&&total ? t(`step.${phase}`,{done,total}) :"")
}

export function media({request,result},attributes){
	const node=result.kind==="png"
		? el("img",{src:result.video,alt:request.prompt})
		:el("video",{src:result.video,poster:result.thumbnail,playsinline:"","aria-label":request.prompt,...attributes})
	node.muted = true
	return fit(node,request)
}

// Takes the place of a picture of this size; small ones are shown larger, within limits.
function fit(node,{width,height}){
	node.classList.add("fit")
	node.style.setProperty("--ratio",width / height)
	node.style.maxWidth = `${Math.max(width*6, 320)}px`
	return node
}

export function isDraft({request}){
	const model=modelOf(request.model)
	return Boolean(model)&&request.steps<=draftSteps(model)&&request.steps<model.defaults.steps
}

export function makeResult(actions){
	const root=$.result
	let key=""
	let parts={}

	// Draws a job, or the empty stage; only what changed, so that focus and a playing video stay.
	return job=>{
		root.hidden = false
		const prompt=$.prompt.value.trim()||example()
		const next=[language(),...(job ? [job.id,job.state,isDraft(job)] :[state.loaded,prompt])].join()
		if(next!==key){
			const isFocused=root.contains(document.activeElement)
			key = next
			root.replaceChildren(...(job ? draw(job) :empty(prompt)))
			if(isFocused) root.focus({preventScroll:true})
			if(!calm()) root.querySelector("video")?.play().catch(()=>{}) // refused: there are controls
		}
		if(job&&isActive(job)) update(job)
	}

	function empty(prompt){
		if(!state.loaded) return []
		return [el("div.screen",el("div.say",el("h2",t("empty")),el("p",t("empty.text",{prompt}))))]
	}

	function draw(job){
		const screen=el("div.screen")
		const side=el("div.side")
		if(isActive(job)){
			parts = {
				image:fit(el("img",{alt:job.request.prompt}),job.request),
				status:el("p.status"),
				bar:el("progress",{max:100,"aria-label":t("progress")}),
				left:el("p.hint"),
			}
			screen.append(parts.image)
			side.append(parts.status,parts.bar,parts.left,cancelButton(job,root,actions))
		} else if(job.state==="completed"){
			screen.append(media(job,{controls:"",loop:""}))
			side.append(el("div.buttons",...finalButton(job),...buttons(job)))
		} else {
			const reason=job.state==="failed"&&job.error ? message(job.error.message) :""
			screen.append(el("div.say",el("p",t(`state.${job.state}`)),el("p.error",reason)))
			side.append(el("div.buttons",...buttons(job)))
		}
		side.append(settings(job))
		return [el("h2",{lang:"en"},job.request.prompt),el("div.stage",screen,side)]
	}

	function finalButton(job){
		if(!isDraft(job)) return []
		const n=Math.max(Number($.steps.value),modelOf(job.request.model).defaults.steps)
		return [button(t("final",{n}),()=>actions.again(job,n),{class:"primary"})]
	}

	function buttons(job){
		const {result}=job
		return [
			result&&el("a.button",{href:result.video,download:fileName(job,result.kind)},t("download")),
			button(t("again"),()=>actions.again(job),{title:t("again.title")}),
			button(t("remix"),()=>actions.remix(job),{title:t("remix.title")}),
			result&&button(t("compare"),()=>actions.compare(job)),
			button(t("delete"),()=>actions.remove(job)),
		]
	}

	function settings({request,result,started_at,completed_at}){
		const rows=settingRows(request).filter(([,text])=>text&&text!=="none")
		if(result){
			rows.push(["made",duration(completed_at - started_at)])
			rows.push(["bytes",`${result.kind}, ${bytesText(result.bytes)}`])
			rows.push(...(result.notes??[]).map(note=>["notes",message(note)]))
		}
		const list=el("dl",...rows.map(([name,value])=>el("div",el("dt",t(name)),el("dd",value))))
		const recipe=result&&el("a",{href:result.recipe,download:fileName({request},"json")},t("recipe"))
		return el("div",list,recipe)
	}

	function update(job){
		const left=job.seconds_left ? [t("left",{time:duration(job.seconds_left)})] :[]
		if(job.state!=="queued") left.unshift(`${number(job.progress, 0)}%`)
		say(parts.status,statusOf(job))
		say(parts.left,left.join(" · "))
		parts.bar.value = job.progress
		showPreview(parts.image,job)
	}
}

export function showPreview(image,{preview}){
	if(preview&&image.getAttribute("src")!==preview) image.src = preview
}

// Button that cancels a job once; the focus moves to `next`, since a disabled button loses it.
export function cancelButton(job,next,actions){
	const node=button(t("cancel"),()=>{
		node.disabled = true
		say(node,t("cancelling"))
		next.focus({preventScroll:true})
		actions.cancel(job)
	})
	return node
}
