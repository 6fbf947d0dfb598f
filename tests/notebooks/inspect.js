// What a reader would find broken inside a page: [kind, detail] pairs; and the ids and links of the page.
// Text is compared with what lies behind it in both themes.
(() => {
  const found = [];
  const say = (kind, detail) => found.push([kind, String(detail).replace(/\s+/g, " ").trim().slice(0, 200)]);
  const article = document.querySelector(".bd-article, article, main") || document.body;

  for (const bad of document.querySelectorAll(
      'mjx-container [data-mjx-error], mjx-container [data-mml-node="merror"], ' +
      'mjx-container [fill="red"], mjx-container [mathcolor="red"]'))
    say("red formula", bad.closest("mjx-container").parentElement.textContent || bad.textContent);

  const raw = /\\\(|\\\)|\\\[|\\\]|\$\$|\\begin\{|\\(?:frac|E|Cov|Var|N|T|mathbb|operatorname|Sigma)\b|\$[^$\n]*[\\^_][^$\n]*\$/;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode, parent = text.parentElement;
    if (raw.test(text.data) && !parent.closest("pre, code, script, style, textarea, mjx-container, .highlight, .sig"))
      say("raw formula", text.data);
  }

  for (const formula of document.querySelectorAll('mjx-container[display="true"]')) {
    const drawn = formula.querySelector("svg"), hidden = drawn ? drawn.getBoundingClientRect().width - formula.clientWidth : 0;
    if (hidden > 1)
      say("clipped formula", `${Math.round(hidden)} px do not show in #${formula.closest("[id]")?.id}: break its line`);
  }

  for (const code of article.querySelectorAll("pre"))
    if (code.scrollWidth > code.clientWidth + 1) say("cut code", code.textContent.split("\n").sort((a, b) => b.length - a.length)[0]);

  for (const image of document.querySelectorAll("img"))
    if (!(image.getAttribute("alt") || "").trim()) say("no alt text", image.outerHTML);
  for (const drawn of article.querySelectorAll("svg, canvas")) {
    if (drawn.closest("mjx-container, [aria-hidden=true], button, a") || drawn.parentElement.closest("svg")) continue;
    const labelled = drawn.closest('[role="img"]');
    if (!labelled || !(labelled.getAttribute("aria-label") || "").trim()) say("no alt text", drawn.outerHTML);
  }

  // the ledger's lines lie in a fold, open where one did not hold
  const lines = /^(?:(?:PASS|HOLDS|FAILS|UNDECIDED) [A-Z]\d.*\s*)+$/;
  for (const printed of article.querySelectorAll("pre"))
    if (lines.test(printed.textContent.trim()) && !printed.closest("details.cd-checks")) say("unfolded checks", printed.textContent);
  for (const fold of article.querySelectorAll("details.cd-checks"))
    if (!fold.open && !fold.parentElement.closest(".cd-checks") && /^(?:FAILS|UNDECIDED) /m.test(fold.textContent))
      say("folded failure", fold.textContent);

  // no heading is louder than the one above it, no value than the words around it
  const level = name => [...article.querySelectorAll(name)].map(e => getComputedStyle(e)).map(style => [parseFloat(style.fontSize), +style.fontWeight])[0];
  const [above, below] = [level("h2"), level("h3")];
  if (above && below && (below[0] >= above[0] || below[1] > above[1])) say("loud", `h3 of ${below} beside h2 of ${above}`);
  for (const value of article.querySelectorAll(".pasted-text"))
    if (+getComputedStyle(value).fontWeight > +getComputedStyle(value.parentElement).fontWeight) {
      say("loud", value.textContent);
      break;
    }

  const channels = colour => {
    const paint = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    paint.canvas.width = paint.canvas.height = 1;
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const cache = new Map();
  const rgba = colour => {
    if (!cache.has(colour)) cache.set(colour, channels(colour));
    return cache.get(colour);
  };
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const layer = rgba(getComputedStyle(at).backgroundColor);
      if (layer[3]) layers.push(layer);
      if (layer[3] === 255) break;
    }
    return layers.reverse().reduce((base, [r, g, b, a]) =>
      [r, g, b].map((channel, i) => channel * a / 255 + base[i] * (1 - a / 255)), [255, 255, 255]);
  };
  const luminance = colour => colour.slice(0, 3).map(channel => channel / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const still = document.head.appendChild(document.createElement("style"));
  still.textContent = "* { transition: none !important; animation: none !important }";
  const before = document.documentElement.dataset.theme;
  for (const theme of ["light", "dark"]) {
    document.documentElement.dataset.theme = theme;
    const reported = new Set();
    for (const element of article.querySelectorAll("h1, h2, h3, p, li, td, th, a, figcaption, dt, .sig span, pre, pre span, code, code span, svg text, mjx-container")) {
      const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
      if (!(own || element.matches("mjx-container")) || !element.getClientRects().length) continue;
      const style = getComputedStyle(element);
      if (style.visibility === "hidden" || element.closest("[aria-hidden=true], .headerlink")) continue;
      const ink = element.matches("svg text") ? style.fill : style.color;
      const base = behind(element), [r, g, b, a] = rgba(ink);
      const shown = [r, g, b].map((channel, i) => channel * a / 255 + base[i] * (1 - a / 255));
      const [low, high] = [luminance(shown), luminance(base)].sort((x, y) => x - y);
      const ratio = (high + 0.05) / (low + 0.05), what = element.className + ink + base;
      const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.6 && style.fontWeight >= 700);
      if (ratio < (large ? 3 : 4.5) && !reported.has(what)) {
        reported.add(what);
        say("unreadable", `${theme}: ${ink} on rgb(${base.map(Math.round)}), ${ratio.toFixed(1)}:1, "${element.textContent.slice(0, 40)}"`);
      }
    }
  }
  if (before === undefined) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = before;
  still.remove();

  return {
    found,
    ids: [...document.querySelectorAll("[id], a[name]")].flatMap(e => [e.id, e.getAttribute("name")]).filter(Boolean),
    links: [...document.querySelectorAll("a[href], link[href], area[href]")].map(e => e.href.baseVal ?? e.href),
  };
})()
