// What printing would lose, asked while the page is laid out for paper: [kind, detail] pairs.
(() => {
  const found = [], say = detail => found.push(["lost in print", String(detail).replace(/\s+/g, " ").trim().slice(0, 120)]);
  const article = document.querySelector(".bd-article, article, main") || document.body;
  const shown = e => e.getClientRects().length > 0;
  for (const fold of article.querySelectorAll("details:not([open])"))
    if (shown(fold) && (fold.children.length < 2 || ![...fold.children].slice(1).every(e => e.checkVisibility()))) say(`an empty box: ${fold.textContent}`);
  for (const fold of article.querySelectorAll(".cd-checks"))
    if (!fold.checkVisibility()) say(`a check: ${fold.textContent}`);
  for (const code of article.querySelectorAll("pre"))
    if (shown(code) && (code.scrollWidth > code.clientWidth + 1 || getComputedStyle(code).whiteSpace === "pre"))
      say(`a cut line: ${code.textContent}`);
  for (const cell of article.querySelectorAll(".cell"))
    if (shown(cell) && getComputedStyle(cell).breakInside.startsWith("avoid")) {
      say(`a cell that no page may break: ${cell.textContent}`);
      break;
    }
  const title = article.querySelector("h1");
  if (title && !shown(title)) say(`the title ${title.textContent}`);
  return found;
})()
