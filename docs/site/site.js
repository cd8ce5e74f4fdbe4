// What the theme adds to code and tables, made usable without a mouse and distinct for screen readers.
function label() {
  document.querySelectorAll("nav.md-code__nav:not([aria-label])").forEach((one, number) => {
    one.setAttribute("aria-label", `Code ${number + 1}`);
  });
  document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])").forEach((one) => {
    one.tabIndex = 0;
  });
}
new MutationObserver(label).observe(document.documentElement, { childList: true, subtree: true });
label();
