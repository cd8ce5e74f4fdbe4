import {$,el} from "./dom.js"
import {isActive,older,state} from "./jobs.js"
import {arrange} from "./queue.js"
import {isDraft} from "./result.js"
import {framesText} from "./settings.js"
import {language,t} from "./words.js"

export function makeGallery(actions){
	const cards=new Map()
	$.gallery_more.onclick = ()=>older().catch(actions.fail)

	return (jobs,selected,first)=>{
		const ended=jobs.filter(job=>!isActive(job))
		$.gallery_empty.hidden = ended.length>0||!state.loaded
		$.gallery_more.hidden = !state.more
		const nodes=ended.map(job=>{
			const key=[job.id,job.state,isDraft(job),language()].join()
			if(!cards.has(key)) cards.set(key,make(job))
			const node=cards.get(key)
			const card=node.firstChild
			card.setAttribute("aria-current",job.id===selected)
			card.disabled = Boolean(first)&&(job.id===first.id||!job.result)
			return node
		})
		arrange($.gallery_list,nodes)
	}

	function make(job){
		const {request,result}=job
		const badge=!result ? t(`state.${job.state}`) :isDraft(job) ? t("draft.badge") :""
		return el("li",el("button.card",{type:"button",onclick:()=>actions.select(job.id)},
			result ? el("img",{src:result.thumbnail??result.video,alt:"",loading:"lazy"}) :el("span.none"),
			el("span.name",{lang:"en"},request.prompt),
			el("span.hint",badge&&el("span.badge",badge),result ? framesText(request.num_frames,request.fps) :"")))
	}
}
