// LoRAs of the form.
import {$,button,el,options} from "./dom.js"
import {t} from "./words.js"

let offered=[]
let rows=[]

export const loraRows=()=>rows

export function setUpLoras(){
	$.lora_button.onclick = ()=>{
		rows.push({name:$.lora.value,scale:1})
		draw()
		$.lora_list.lastChild.querySelector("input").focus()
	}
}

export function offerLoras(all,model){
	offered = all.filter(lora=>!lora.model||lora.model===model)
	return setLoras(rows)
}

export function setLoras(wanted){
	const isOffered=({name})=>offered.some(lora=>lora.name===name)
	rows = wanted.filter(isOffered)
	draw()
	return wanted.filter(row=>!isOffered(row)).map(row=>row.name)
}

function changed(){
	$.prompt.dispatchEvent(new Event("input",{bubbles:true})) // the form keeps what was typed
}

function draw(){
	$.lora_list.replaceChildren(...rows.map(line))
	const left=offered.filter(({name})=>!rows.some(row=>row.name===name))
	options($.lora,left.map(({name,summary})=>[name,summary ? `${name}: ${summary}` :name]))
	$.lora_add.hidden = !left.length
	$.lora_none.hidden = offered.length>0
}

function line(row){
	const {name}=row
	const weight=el("input",{
		type:"number",step:"0.05",value:row.scale,"aria-label":t("loras.weight",{name}),
		oninput:()=>(row.scale = Number(weight.value)),
	})
	const remove=()=>{
		setLoras(rows.filter(other=>other!==row))
		changed()
		$.lora.focus()
	}
	const words=offered.find(lora=>lora.name===name).trigger_words??[]
	const insert=word=>{
		if(!$.prompt.value.includes(word)) $.prompt.value = $.prompt.value.trim().replace(/(.)$/,"$1, ")+word
		changed()
	}
	return el("li",el("span.name",name),weight,
		button("×",remove,{"aria-label":t("loras.remove",{name})}),
		...words.map(word=>button(`+ ${word}`,()=>insert(word),{class:"word","aria-label":t("loras.word",{word})})))
}
