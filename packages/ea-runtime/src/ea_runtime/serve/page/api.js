// Requests to the server, and its stream of events.
import {keep,kept} from "./dom.js"
import {t} from "./words.js"

// `own`: the words are this page's, not the server's.
export class ApiError extends Error {
	constructor(text,param,own = false){
		super(text)
		this.param = param
		this.own = own
	}
}

// Name of this browser: the server serves its clients in turn.
let client=kept("ea.client")
if(!/^\w{24}$/.test(client)){
	// not randomUUID: only secure origins have it, and a server in a local network is none
	client = Array.from(crypto.getRandomValues(new Uint8Array(12)),b=>b.toString(16).padStart(2,"0")).join("")
	keep("ea.client",client)
}

async function call(method,path,body){
	const headers={"X-EA-Client":client}
	if(body&&!(body instanceof FormData)){
		headers["Content-Type"] = "application/json"
		body = JSON.stringify(body)
	}
	const response=await fetch(path,{method,headers,body,cache:"no-store"}).catch(()=>null)
	if(!response) throw new ApiError(t("error.offline"),null,true)
	const answer=await response.json().catch(()=>null)
	if(response.ok&&answer) return answer
	if(response.status===401) throw new ApiError(t("error.token"),null,true)
	const {message=`${response.status} ${response.statusText}`,param} = answer?.error??{}
	const seconds=response.headers.get("Retry-After")
	throw new ApiError(seconds ? `${message} ${t("error.retry", {seconds})}` :message,param)
}

export const about=()=>call("GET","/api/about")
export const health=()=>call("GET","/healthz")
export const listJobs=(limit,after)=>
	call("GET",`/api/jobs?order=desc&limit=${limit}${after ? `&after=${after}` : ""}`)
export const getJob=id=>call("GET",`/api/jobs/${id}`)
export const addJob=fields=>call("POST","/api/jobs",fields)
export const plan=fields=>call("POST","/api/plan",fields)
export const cancelJob=id=>call("POST",`/api/jobs/${id}/cancel`)
export const deleteJob=id=>call("DELETE",`/api/jobs/${id}`)

export function readRecipe(file){
	const form=new FormData()
	form.append("file",file)
	return call("POST","/api/recipe",form)
}

export function follow({onOpen,onLost,onJob,onDeleted}){
	let wait=1000
	const open=()=>{
		const source=new EventSource("/api/events")
		source.onopen = ()=>{
			wait = 1000
			onOpen()
		}
		source.addEventListener("job",event=>onJob(JSON.parse(event.data)))
		source.addEventListener("deleted",event=>onDeleted(JSON.parse(event.data).id))
		source.onerror = ()=>{
			// browsers give up for good after some answers, such as a proxy's 502: so not left to them
			source.close()
			onLost()
			setTimeout(open,wait)
			wait = Math.min(wait*1.5,5000)
		}
	}
	open()
}
