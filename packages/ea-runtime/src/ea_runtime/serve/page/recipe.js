// Files with settings for the form; a picture without any is what a video starts with.
import {readRecipe} from "./api.js"
import {$} from "./dom.js"
import {clearErrors,fill,showError} from "./form.js"
import {choose} from "./pictures.js"
import {t} from "./words.js"

const isPicture=file=>file.type.startsWith("image/")

async function take(file,last){
	if(!file) return
	clearErrors()
	$.file_note.textContent = ""
	try {
		const {unknown=[],...request} = await readRecipe(file)
		const names=[...new Set([...unknown,...fill(request)])].join(", ")
		$.file_note.textContent = t("file.taken",{file:file.name})+(names&&` ${t("file.unknown", {names})}`)
	} catch (error){
		if(!error.own&&isPicture(file)){
			choose("input_reference",file)
			if(last&&isPicture(last)) choose("input_reference_end",last)
			$.file_note.textContent = t("file.picture",{file:file.name})
			return
		}
		showError({message:error.message,own:error.own,param:"file"})
	}
}

export function setUpRecipe(){
	$.file.onchange = ()=>{
		take($.file.files[0])
		$.file.value = "" // so that the same file can be chosen again
	}
	const on=(type,shown)=>
		addEventListener(type,event=>{
			if(!event.dataTransfer?.types.includes("Files")) return
			event.preventDefault()
			$.drop.hidden = !shown
			if(type==="drop") take(...event.dataTransfer.files)
		})
	on("dragover",true)
	on("drop",false)
	$.drop.addEventListener("dragleave",()=>($.drop.hidden = true))
}
