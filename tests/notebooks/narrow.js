// What a phone's reader cannot see or touch: [kind, detail] pairs.
(() => {
  const found = [];
  const say = (kind, detail) => found.push([kind, String(detail).replace(/\s+/g, " ").trim().slice(0, 160)]);
  const article = document.querySelector(".bd-article, article, main") || document.body;
  // what a closed fold holds has a size, but nobody sees it
  const shown = e => e.checkVisibility() && e.getClientRects().length > 0 && getComputedStyle(e).visibility !== "hidden";
  const scrolls = e => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);

  // whether a right edge lies outside of a box around it that hides what is outside
  const hidden = (right, inside) => {
    for (let at = inside; at && at !== document.body; at = at.parentElement) {
      if (getComputedStyle(at).overflowX === "visible") continue;
      if (scrolls(at)) return false;
      if (right > at.getBoundingClientRect().right + 1) return true;
    }
    return right > innerWidth;
  };
  for (const formula of article.querySelectorAll("mjx-container:not([display])")) {
    const drawn = formula.querySelector("svg");
    if (drawn && shown(formula) && hidden(drawn.getBoundingClientRect().right, formula))
      say("clipped formula", `in a line: ${formula.parentElement.closest("p, li, td, figcaption")?.textContent}`);
  }
  // a mark that a style sheet sets in the margin, such as the square after a proof
  for (const box of article.querySelectorAll("div, p, figure")) {
    const mark = getComputedStyle(box, "::after");
    if (mark.content === "none" || mark.position !== "absolute" || getComputedStyle(box).position === "static" || !shown(box)) continue;
    const right = box.getBoundingClientRect().right - box.clientLeft - parseFloat(mark.right);
    if (!(right <= innerWidth) || hidden(right, box)) say("clipped mark", `${mark.content} in ${box.id || box.className}`);
  }

  // formulas are broken by meaning, or set a little smaller: none scrolls
  for (const formula of article.querySelectorAll("mjx-container"))
    if (shown(formula) && (formula.matches("[display]") || scrolls(formula)) && formula.scrollWidth - formula.clientWidth > 1)
      say("wide formula", `by ${formula.scrollWidth - formula.clientWidth} px: ${formula.closest("section, div.proof")?.id} ${formula.parentElement.id}`);

  for (const box of article.querySelectorAll("*")) {
    if (box.scrollWidth - box.clientWidth <= 1 || !box.clientWidth || !shown(box) || !scrolls(box)) continue;
    if (!box.matches(".cd-more-right, .cd-more-left")) say("scrolls without a hint", box.outerHTML.slice(0, 120));
    if (box.querySelector("caption, figcaption")) say("caption that scrolls away", box.querySelector("caption, figcaption").textContent);
    if (box.matches(".cd-canvas")) say("figure cut", box.closest("figure")?.textContent.slice(0, 80));
  }
  for (const box of article.querySelectorAll(".cd-canvas"))
    if (box.scrollWidth - box.clientWidth > 1) say("figure cut", `${box.scrollWidth} px in ${box.clientWidth}`);
  // no line begins with the point after a formula
  for (const formula of article.querySelectorAll("mjx-container:not([display])")) {
    const whole = formula.parentElement.matches("span.math") ? formula.parentElement : formula, after = whole.nextSibling;
    if (after?.nodeType !== Node.TEXT_NODE || !/^[.,;:!?)]/.test(after.data) || !shown(formula)) continue;
    const point = document.createRange();
    point.setStart(after, 0);
    point.setEnd(after, 1);
    if (point.getBoundingClientRect().left < formula.getBoundingClientRect().right - 2) say("lonely point", formula.parentElement.closest("p, li, td, figcaption")?.textContent);
  }

  // panels that stand one under the other are neither left nor right: they have titles or letters
  for (const figure of article.querySelectorAll("figure:has(.cd-panels)")) {
    const caption = figure.querySelector("figcaption"), side = /(?:^|[.:;,] )(?:Left|Right|Middle|Centre)\b|\((?:left|right|middle)\b|\b(?:left|right|middle)\)/;
    const words = [...figure.querySelectorAll("[aria-label]")].map(e => e.getAttribute("aria-label")).concat(caption?.textContent ?? "");
    if (figure.querySelectorAll(".cd-panel").length > 1 && words.some(text => side.test(text)))
      say("side named", caption?.textContent ?? words[0]);
  }
  // matplotlib writes text as outlines, a hundred units to the size of a letter, upside down; a window shows another drawing's
  const LEGIBLE = 9, sized = /scale\(([\d.]+) -[\d.]+\)/;
  for (const drawing of article.querySelectorAll(".cd-canvas > svg")) {
    const {width} = drawing.getBoundingClientRect(), box = drawing.viewBox.baseVal;
    if (!shown(drawing) || width < 2 || !box?.width) continue;
    const seen = drawing.querySelector("use[href$='-whole']"), holds = seen ? document.getElementById(seen.getAttribute("href").slice(1)) : drawing;
    const sizes = [...holds.querySelectorAll("g[transform]")].map(group => group.getAttribute("transform").match(sized)).filter(Boolean).map(match => 100 * match[1]);
    const pixels = Math.min(...sizes) * width / box.width;
    // what a second drawing writes lies on it
    const edge = drawing.getBoundingClientRect(), beyond = [...drawing.querySelectorAll(".cd-panel g[transform]")].find(group => {
      const {left, right} = group.getBoundingClientRect();
      return sized.test(group.getAttribute("transform")) && (left < edge.left - 1 || right > edge.right + 1);
    });
    if (beyond) say("figure cut", `a word beyond the edge: ${drawing.closest("figure")?.querySelector("figcaption")?.textContent}`);
    if (pixels < LEGIBLE) say("small text", `${pixels.toFixed(1)} px: ${drawing.closest("figure")?.querySelector("figcaption")?.textContent}`);
  }
  for (const control of article.querySelectorAll("figure input, figure button"))
    if (shown(control) && control.getBoundingClientRect().height < 24) say("small control", control.outerHTML);
  return found;
})()
