// Jobs as the server has them, newest first.
import {getJob,listJobs} from "./api.js"

const jobs=new Map()
const listeners=[]
let ids=[]
let cursor="" // oldest job of the last page: the next one begins after it
let touched=null // ids that events named while a list was on its way: they are newer than the list
let timer=0

export const state={loaded:false,more:false}
export const onJobs=listener=>listeners.push(listener)
export const isActive=job=>job.state==="queued"||job.state==="in_progress"
export const find=id=>jobs.get(id)
export const all=()=>ids.map(find)

// Draws once for a burst of events. By timer: hidden tabs have no animation frames, but a title.
export function changed(){
	timer ||= setTimeout(()=>{
		timer = 0
		for(const listener of listeners) listener()
	},30)
}

export function put(job){
	touched?.add(job.id)
	if(!jobs.has(job.id)){
		const at=ids.findIndex(id=>find(id).created_at<=job.created_at)
		ids.splice(at<0 ? ids.length :at,0,job.id)
	}
	jobs.set(job.id,job)
	changed()
}

export function drop(id){
	touched?.add(id)
	if(id===cursor) cursor = ids[ids.indexOf(id) - 1]
	jobs.delete(id)
	ids = ids.filter(other=>other!==id)
	changed()
}

// Asks for as many jobs as are shown; the answer replaces them, but for what changed meanwhile.
export async function refresh(){
	const seen=(touched = new Set())
	const answer=await listJobs(Math.min(100,Math.max(24,ids.length)))
	touched = null
	const fresh=all().filter(job=>seen.has(job.id))
	const newest=job=>(seen.has(job.id) ? find(job.id) :job)
	const listed=answer.jobs.map(newest).filter(Boolean)
	jobs.clear()
	ids = []
	take({...answer,jobs:listed})
	fresh.forEach(put)
	state.loaded = true
}

export const older=async ()=>take(await listJobs(24,cursor))

function take(answer){
	for(const job of answer.jobs){
		if(!jobs.has(job.id)) ids.push(job.id)
		jobs.set(job.id,job)
	}
	ids.sort((a,b)=>find(b).created_at - find(a).created_at) // stable: within a second the server's order stays
	cursor = answer.jobs.at(-1)?.id
	state.more = answer.has_more
	changed()
}

export async function need(id){
	const job=find(id)??(await getJob(id))
	if(!find(id)) put(job)
}
