// Elements made from text, never from HTML; storage.

export const $ = new Proxy({},{get:(_,id)=>document.getElementById(id)})

// Element "tag.class". Objects among `parts` are attributes; functions are listeners, false and null leave one out.
// The other parts are children: strings become text, and nothing else.
export function el(name,...parts){
	const [tag,...classes] = name.split(".")
	const node=document.createElement(tag)
	node.classList.add(...classes)
	for(const part of parts){
		if(part===null||part===false) continue
		if(typeof part==="string"||part instanceof Node){
			node.append(part)
			continue
		}
		for(const [key,value] of Object.entries(part)){
			if(typeof value==="function") node[key] = value
			else if(value!==false&&value!==null) node.setAttribute(key,value)
		}
	}
	return node
}

export const button=(text,onclick,...parts)=>el("button",{type:"button",onclick},text,...parts)

// Sets a text only if it changed, so that screen readers stay undisturbed.
export function say(node,text){
	if(node.textContent!==text) node.textContent = text
}

export const message=text=>
	el("span",{lang:"en"},...text.split("`").map((part,i)=>(i%2 ? el("code",part) :part)))

// Options [value, text, title] of a select; what is chosen stays so if it is still there.
export function options(select,rows,chosen = select.value){
	select.replaceChildren(...rows.map(([value,text,title = ""])=>el("option",{value,title},text)))
	select.value = chosen
	if(select.selectedIndex<0) select.selectedIndex = 0
}

export const calm=()=>matchMedia("(prefers-reduced-motion: reduce)").matches

export function keep(key,value){
	try {
		localStorage[key] = value
	} catch {} // storage is blocked or full
}

export function kept(key){
	try {
		return localStorage[key]
	} catch {}
}
