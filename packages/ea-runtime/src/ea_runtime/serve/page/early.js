// Language and theme before the first paint, so that nothing flashes: the one script that is not a module.
{
	let kept = {}
	try {
		kept = localStorage
	} catch {} // storage is blocked: the browser's own wishes hold
	const root = document.documentElement
	root.lang = kept["ea.language"] || (/^zh\b/i.test(navigator.language) ? "zh" : "en")
	root.dataset.theme = kept["ea.theme"] || "auto"
}
