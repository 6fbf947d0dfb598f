// What keeps a chapter's reader from its pictures and its prose, on a laptop with all folds closed: [kind, detail] pairs.
(() => {
  const article = document.querySelector(".bd-article, article, main") || document.body;
  const SHARE = 0.3, SCREENS = 1.5, SCREEN = 900;
  if (!article.querySelector(".cell_input")) return [];
  const found = [], height = e => e.checkVisibility() ? e.getBoundingClientRect().height : 0;
  const code = [...article.querySelectorAll(".cell_input, details.hide > summary")].reduce((sum, e) => sum + height(e), 0);
  const share = code / article.getBoundingClientRect().height;
  if (share > SHARE) found.push(["mostly code", `${Math.round(100 * share)} % of the page's height`]);
  const figure = [...article.querySelectorAll("figure, svg[role=img], img")]
    .find(e => !e.closest("mjx-container, .cd-table") && height(e) > 40);
  const top = figure ? figure.getBoundingClientRect().top + scrollY : Infinity;
  if (top > SCREENS * SCREEN) found.push(["late figure", `the first one begins at ${Math.round(top)} px`]);
  return found;
})()
