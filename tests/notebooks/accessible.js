// axe-core's violations, [kind, detail] pairs; the last thing that is asked of a page, as it takes out what drawings hold:
// the inside of formulas, figures and highlighted code has no structure for axe to judge, and costs it most of its time. Contrast
// inside of them is measured by inspect.js.
(async () => {
  for (const formula of document.querySelectorAll("mjx-container")) formula.textContent = "formula"; // it has a text of its own
  for (const drawn of document.querySelectorAll("figure svg")) drawn.replaceChildren();
  for (const code of document.querySelectorAll(".highlight pre, .sig-param, .sig-return, code")) code.replaceChildren(code.textContent);
  document.querySelectorAll("script").forEach(script => script.remove());
  const still = document.head.appendChild(document.createElement("style"));
  still.textContent = "* { transition: none !important; animation: none !important }";
  const found = [], before = document.documentElement.dataset.theme;
  for (const theme of ["light", "dark"]) {
    document.documentElement.dataset.theme = theme;
    const run = {resultTypes: ["violations"], preload: false, iframes: false};
    if (theme === "dark") run.runOnly = ["color-contrast"];
    for (const {id, nodes} of (await axe.run(document, run)).violations)
      for (const {html, any, all, none} of nodes)
        found.push(["axe", `${id}, ${theme}: ${html.replace(/\s+/g, " ").slice(0, 120)} ${[...any, ...all, ...none].map(check => check.message)[0] || ""}`]);
  }
  if (before === undefined) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = before;
  return found;
})()
