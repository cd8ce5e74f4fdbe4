import {keep} from "./dom.js"
import table from "./table.js"

const LANGUAGES=["en","zh"]
const root=document.documentElement
const listeners=[]

export const language=()=>root.lang

// Line `key` with its {names} filled in; the key itself if there is none: a newer server may name new phases.
export const t=(key,values = {})=>
	(table[key]?.[LANGUAGES.indexOf(root.lang)]??key).replace(/\{(\w+)\}/g,(_,name)=>values[name])

export const number=(value,digits = 1)=>
	new Intl.NumberFormat(root.lang,{maximumFractionDigits:digits,useGrouping:false}).format(value)

export function duration(seconds){
	const s=Math.max(1,Math.round(seconds))
	return s<60 ? t("seconds",{s}) :t("minutes",{m:Math.floor(s/60),s:s%60})
}

export const onLanguage=listener=>listeners.push(listener)

export function setLanguage(name){
	root.lang = LANGUAGES.includes(name) ? name :"en"
	keep("ea.language",root.lang)
	for(const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t)
	for(const node of document.querySelectorAll("[data-l]")) node.setAttribute("aria-label",t(node.dataset.l))
	for(const listener of listeners) listener()
}
