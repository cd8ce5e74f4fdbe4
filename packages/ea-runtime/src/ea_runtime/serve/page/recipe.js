// A made file, chosen or dropped on the page: its settings go into the form.
import { readRecipe } from "./api.js";
import { $ } from "./dom.js";
import { clearErrors, fill, showError } from "./form.js";
import { t } from "./words.js";

async function take(file) {
	if (!file) return;
	clearErrors();
	$.file_note.textContent = "";
	try {
		const { unknown = [], ...request } = await readRecipe(file);
		const names = [...new Set([...unknown, ...fill(request)])].join(", ");
		$.file_note.textContent = t("file.taken", { file: file.name }) + (names && ` ${t("file.unknown", { names })}`);
	} catch (error) {
		showError({ message: error.message, own: error.own, param: "file" });
	}
}

export function setUpRecipe() {
	$.file.onchange = () => {
		take($.file.files[0]);
		$.file.value = ""; // so that the same file can be chosen again
	};
	const on = (type, shown) =>
		addEventListener(type, (event) => {
			if (!event.dataTransfer?.types.includes("Files")) return;
			event.preventDefault();
			$.drop.hidden = !shown;
			if (type === "drop") take(event.dataTransfer.files[0]);
		});
	on("dragover", true);
	on("drop", false);
	$.drop.addEventListener("dragleave", () => ($.drop.hidden = true)); // it covers the page
}
