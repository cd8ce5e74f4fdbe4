// Two results side by side and in step, and what differs in their settings.
import {$,button,calm,el} from "./dom.js"
import {media} from "./result.js"
import {settingRows} from "./settings.js"
import {onLanguage,t} from "./words.js"

export function makeCompare(actions){
	let pair=null
	let stop=()=>{}
	onLanguage(()=>pair&&show(...pair))

	function show(...jobs){
		stop()
		pair = jobs
		const nodes=jobs.map(job=>media(job,{preload:"auto"}))
		const videos=nodes.filter(node=>node.tagName==="VIDEO")
		const controls=el("div.controls")
		stop = videos.length ? playInStep(videos,1 / Math.min(...jobs.map(job=>job.request.fps)),controls) :()=>{}
		$.compare.replaceChildren(
			el("div.title",el("h2",t("compare")),button(t("compare.stop"),actions.close)),
			el("div.two",...jobs.map((job,i)=>el("figure",el("div.screen",nodes[i]),el("figcaption",
				el("b","AB"[i])," ",el("span",{lang:"en"},job.request.prompt))))),
			controls,
			differences(...jobs.map(job=>job.request)))
		$.compare.hidden = false
	}

	function hide(){
		stop()
		pair = null
		$.compare.hidden = true
		$.compare.replaceChildren()
	}

	return {show,hide}
}

// Plays `videos` in step. The longest sets the time; a shorter one waits on its last frame until all begin again. Those
// more than half a `frame` (seconds) away are moved. Returns a function that ends it.
function playInStep(videos,frame,controls){
	let isPlaying=!calm()
	let timer=0
	const longest=()=>videos.reduce((a,b)=>((b.duration||0)>(a.duration||0) ? b :a))
	const toggle=button("",()=>set(!isPlaying))
	const position=el("input",{type:"range",min:0,max:0,step:frame,"aria-label":t("compare.position"),oninput:()=>{
		set(false)
		seek(Number(position.value))
	}})
	controls.append(toggle,position)

	const end=video=>video.duration - frame / 4
	// the middle of a frame: on its edge, players round either way
	const seek=time=>videos.forEach(video=>(video.currentTime = Math.min(time+frame / 2,end(video))))

	function set(on){
		isPlaying = on
		toggle.textContent = t(on ? "compare.pause" :"compare.play")
		if(!on) videos.forEach(video=>video.pause())
	}

	function tick(){
		timer = requestAnimationFrame(tick)
		if(videos.some(video=>video.readyState<2)) return
		const lead=longest()
		if(position.max!==`${lead.duration}`) position.max = lead.duration
		if(!isPlaying) return
		if(lead.ended) seek(0)
		position.value = lead.currentTime
		for(const video of videos){
			const wanted=Math.min(lead.currentTime,end(video))
			if(!video.seeking&&Math.abs(video.currentTime - wanted)>frame / 2) video.currentTime = wanted
			if(video.paused&&(video===lead||wanted<end(video))) video.play().catch(()=>set(false))
		}
	}

	set(isPlaying)
	tick()
	return ()=>{
		cancelAnimationFrame(timer)
		videos.forEach(video=>video.pause())
	}
}

function differences(first,second){
	const other=new Map(settingRows(second))
	const rows=settingRows(first).filter(([name,text])=>text!==other.get(name))
	if(!rows.length) return el("p.hint",t("compare.same"))
	const head=[t("compare.setting"),"A","B"].map(name=>el("th",{scope:"col"},name))
	return el("table",el("thead",el("tr",...head)),el("tbody",...rows.map(([name,text])=>
		el("tr",el("th",{scope:"row"},t(name)),el("td",text||"–"),el("td",other.get(name)||"–")))))
}
