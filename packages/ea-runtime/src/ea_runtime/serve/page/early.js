// Before the first paint, so that nothing flashes; no module.
{
	let kept={}
	try {
		kept = localStorage
	} catch {} // storage is blocked
	const root=document.documentElement
	root.lang = kept["ea.language"]||(/^zh\b/i.test(navigator.language) ? "zh" :"en")
	root.dataset.theme = kept["ea.theme"]||"auto"
}
