// Pictures that a video starts and ends with. Browsers keep no files: they last as long as the page.
import {$,button,el,options} from "./dom.js"
import {onLanguage,t} from "./words.js"

const FITS=["crop","pad","stretch"]
const NAMES={input_reference:"image",input_reference_end:"image_end"} // of files, and of a job's pictures
const rows={}
const chosen={} // {url, text, file} by the name of the file; a job's picture has none
let owner // id of the job that all of them are from

export const hasPictures=()=>Object.keys(chosen).length>0

export function setUpPictures(){
	for(const name in NAMES){
		const onchange=({target})=>{
			if(target.files[0]) choose(name,target.files[0])
			target.value = "" // so that the same file can be chosen again
		}
		rows[name] = el("div.pair")
		document.querySelector(`[data-param=${name}]`).append(
			el("label.file",el("input.unseen",{id:name,type:"file",accept:"image/*",onchange}),el("span",{"data-t":name})),
			rows[name])
	}
	onLanguage(draw)
}

export function choose(name,file){
	remove(name)
	$.pictures_note.textContent = ""
	chosen[name] = {url:URL.createObjectURL(file),text:file.name,file}
	draw()
}

export function takeFrom(request,id){
	for(const name in NAMES){
		const url=request[NAMES[name]]
		remove(name)
		if(url) chosen[name] = {url,text:""}
	}
	owner = id
	draw()
}

function remove(name){
	if(chosen[name]?.file) URL.revokeObjectURL(chosen[name].url)
	delete chosen[name]
	owner = ""
}

// What to send: a form with files, or fields that name the job with these pictures.
export async function withPictures(fields){
	if(!hasPictures()) return fields
	if(owner) return {...fields,image_of:owner}
	const form=new FormData()
	for(const [name,value] of Object.entries(fields)) form.append(name,name==="loras" ? JSON.stringify(value) :value)
	for(const [name,{url,file}] of Object.entries(chosen))
		form.append(name,file??(await fetch(url).then(found=>found.blob(),()=>new Blob()))) // the server refuses what is none
	return form
}

function draw(){
	for(const name in NAMES){
		const picture=chosen[name]
		const drop=()=>{
			remove(name)
			draw()
			$[name].focus()
		}
		rows[name].replaceChildren(...(picture ? [
			el("img.thumb",{src:picture.url,alt:picture.text,title:picture.text}),
			button("×",drop,{"aria-label":t("loras.remove",{name:t(name)})})] :[]))
		rows[name].hidden = !picture
	}
	options($.fit,FITS.map(fit=>[fit,t(`fit.${fit}`)]))
	for(const id of ["fit","strength"]) $[id].parentElement.hidden = !hasPictures()
	$.pictures.open ||= hasPictures()
	$.fit.dispatchEvent(new Event("input",{bubbles:true})) // the form keeps that there are some
}
