// The page as a whole.
import*as api from "./api.js"
import {makeCompare} from "./compare.js"
import {$,button,calm,keep,say} from "./dom.js"
import {clearErrors,fieldsOf,fill,offer,read,setUpForm,showError} from "./form.js"
import {makeGallery} from "./gallery.js"
import*as jobs from "./jobs.js"
import {withPictures} from "./pictures.js"
import {makeQueue} from "./queue.js"
import {setUpRecipe} from "./recipe.js"
import {makeResult,statusOf} from "./result.js"
import {language,onLanguage,setLanguage,t} from "./words.js"

const hash=()=>/^#(video_\w+)$/.exec(location.hash)?.[1]??""
let selected=hash() // in the address: a refresh shows it again
let first=null // job that waits for a second one to be compared with
let workers=[]
let version=""
let offered=""
let isLost=false
let failure=""
let announced=""

const again=({id,request},steps = request.steps)=>send(fieldsOf({...request,steps},id))
const actions={select,cancel,again,remix,remove,compare,fail,close:endCompare}
const views={result:makeResult(actions),queue:makeQueue(actions),gallery:makeGallery(actions),compare:makeCompare(actions)}

function current(){
	const list=jobs.all()
	return jobs.find(selected)??list.find(job=>job.state==="in_progress")??list[0]
}

function draw(){
	const list=jobs.all()
	const job=current()
	if($.compare.hidden) views.result(job)
	views.queue(list,job?.id)
	views.gallery(list,job?.id,first)
	const running=list.find(other=>other.state==="in_progress")
	document.title = running ? `${Math.floor(running.progress)}% · ea` :"ea"
	if(job) announce(job)
}

// Phases and ends for screen readers, not every step.
function announce(job){
	const key=[job.id,job.state,job.phase].join()
	if(announced&&announced!==key) say($.live,`${statusOf({...job, total: 0})}${job.error ? `:${job.error.message}` : ""}`)
	announced = key
}

function drawMachine(){
	say($.machine,[version,...workers.map(({device,state})=>`${device} ${t(`worker.${state}`)}`)].filter(Boolean).join(" · "))
	const none=workers.length&&workers.every(({state})=>state==="down")
	say($.banner,[isLost&&t("lost"),none&&!isLost&&t("worker.none"),failure].filter(Boolean).join(" "))
}

// Brings a section into view if it is not, as on a phone, where the form comes first.
function reveal(section){
	section.focus({preventScroll:true})
	const {top,bottom}=section.getBoundingClientRect()
	if(top<0||top>innerHeight*0.6||bottom<0) section.scrollIntoView({behavior:calm() ? "auto" :"smooth"})
}

function fail(error){
	if(!(error instanceof api.ApiError)) throw error
	failure = error.message
	drawMachine()
}

function select(id){
	if(first&&id){
		const pair=[first,jobs.find(id)]
		endPicking()
		$.result.hidden = true
		views.compare.show(...pair)
		return reveal($.compare)
	}
	views.compare.hide()
	selected = id
	failure = ""
	history.replaceState(null,"",id ? `#${id}` :"/")
	draw()
	drawMachine()
	if(id) reveal($.result)
}

async function send(fields,complete = same=>same){
	clearErrors()
	const focused=document.activeElement
	try {
		const job=await api.addJob(await complete(fields))
		if(!jobs.find(job.id)) jobs.put(job) // an event may have been faster, and is newer
		endPicking()
		select(job.id)
		if($.form.contains(focused)) focused.focus({preventScroll:true}) // so that typing goes on
	} catch (error){
		if(!(error instanceof api.ApiError)) throw error
		showError(error)
	}
}

function submit(steps){
	const fields=read()
	if(fields) send(steps ? {...fields,steps} :fields,withPictures)
}

function remix({id,request}){
	fill(request,id)
	$.prompt.select()
	reveal($.prompt)
}

function cancel(job){
	api.cancelJob(job.id).catch(fail)
}

function remove(job){
	$.confirm.returnValue = "no"
	$.confirm.onclose = ()=>{
		if($.confirm.returnValue==="yes") api.deleteJob(job.id).then(()=>leave(job.id),fail)
	}
	$.confirm.showModal()
}

function leave(id){
	jobs.drop(id)
	select("")
	$.result.focus({preventScroll:true})
}

function compare(job){
	first = job
	drawPicking()
	reveal($.gallery)
	$.gallery_list.querySelector(".card:enabled")?.focus({preventScroll:true})
}

function drawPicking(){
	$.pick_note.replaceChildren(...(first ? [t("compare.pick")," ",button(t("compare.stop"),endPicking)] :[]))
	draw()
}

function endPicking(){
	first = null
	drawPicking()
}

function endCompare(){
	views.compare.hide()
	draw()
	$.result.focus({preventScroll:true})
}

async function refreshAbout(){
	const about=await api.about()
	const text=JSON.stringify(about)
	if(text!==offered) offer(about) // only then: this closes a list that is open
	jobs.changed()
	offered = text
	version = about.version
	drawMachine()
}

async function refreshHealth(){
	({workers = []} = await api.health())
	drawMachine()
}

async function load(){
	try {
		await Promise.all([jobs.refresh(),refreshAbout(),refreshHealth()])
		if(selected) await jobs.need(selected)
		performance.mark("usable")
	} catch (error){
		fail(error)
	}
}

function setLost(lost){
	isLost = lost
	if(!lost) failure = ""
	drawMachine()
}

$.language.value = language()
$.language.onchange = ()=>setLanguage($.language.value)
$.theme.value = document.documentElement.dataset.theme
$.theme.onchange = ()=>{
	document.documentElement.dataset.theme = $.theme.value
	keep("ea.theme",$.theme.value)
}
setUpForm(submit,()=>current()?.request.seed)
setUpRecipe()
jobs.onJobs(draw)
onLanguage(drawMachine)
onLanguage(drawPicking)
setLanguage(language())
addEventListener("hashchange",()=>hash()&&select(hash()))
document.addEventListener("keydown",event=>{
	if(event.key!=="Escape"||$.confirm.open) return
	if(first) endPicking()
	else if(!$.compare.hidden) endCompare()
})
load()
api.follow({
	onOpen:()=>{
		if(isLost) load() // a new stream begins with what is going on, but not with what was deleted
		setLost(false)
	},
	onLost:()=>setLost(true),
	onJob:jobs.put,
	onDeleted:jobs.drop,
})
// workers come and go, and files may have been put into the server's folders
setInterval(()=>document.hidden||isLost||refreshHealth().catch(fail),10000)
addEventListener("focus",()=>isLost||Promise.all([refreshAbout(),refreshHealth()]).catch(fail))
