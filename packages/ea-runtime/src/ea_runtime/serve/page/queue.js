import {$,el,say} from "./dom.js"
import {isActive} from "./jobs.js"
import {cancelButton,showPreview,statusOf} from "./result.js"
import {language,t} from "./words.js"

export function makeQueue(actions){
	const lines=new Map() // by job and language; kept, so that the focus stays on a line that changes

	return (jobs,selected)=>{
		const active=jobs.filter(isActive).sort((a,b)=>(a.position??0) - (b.position??0))
		$.queue.hidden = !active.some(job=>job.id!==selected)
		const nodes=active.map(job=>{
			const key=job.id+language()
			if(!lines.has(key)) lines.set(key,make(job))
			const line=lines.get(key)
			say(line.status,statusOf(job))
			line.bar.value = job.progress
			line.bar.hidden = job.state==="queued"
			showPreview(line.image,job)
			line.choose.setAttribute("aria-current",job.id===selected)
			return line.node
		})
		arrange($.queue_list,nodes)
	}

	function make(job){
		const image=el("img",{alt:""})
		const status=el("span.hint")
		const bar=el("progress",{max:100,"aria-label":t("progress")})
		const choose=el("button.line",{type:"button",onclick:()=>actions.select(job.id)},
			image,el("span",el("span.name",{lang:"en"},job.request.prompt),status))
		return {node:el("li",choose,bar,cancelButton(job,choose,actions)),image,status,bar,choose}
	}
}

// Makes `nodes` the children of `list`; those in place are not moved, since that would take their focus.
export function arrange(list,nodes){
	for(const node of [...list.children]) if(!nodes.includes(node)) node.remove()
	nodes.forEach((node,at)=>list.children[at]===node||list.insertBefore(node,list.children[at]))
}
