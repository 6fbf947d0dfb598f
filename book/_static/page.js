// What the theme and the extensions leave undone on a page: previews, boxes that scroll, folds that a link leads into.
(() => {
  // Previews are written by sphinx-tippy, one a link. A formula can be set only where it has a size, which is in the
  // document: on mount, not before. Its place is found again when the formulas have theirs.
  if (window.tippy) {
    tippy.setDefaultProps({
      appendTo: () => document.body, // no box that hides overflow cuts it
      onCreate: ({popper}) => {
        for (const copy of popper.querySelectorAll(".tippy-content [id]")) copy.removeAttribute("id");
      },
      onMount: async instance => {
        const content = instance.popper.querySelector(".tippy-content");
        if (window.MathJax?.startup?.promise && content.querySelector(".math, .mathjax_process")) {
          await MathJax.startup.promise;
          if (!content.querySelector("mjx-container")) await MathJax.typesetPromise([content]);
        }
        instance.popperInstance?.update();
        instance.popper.dataset.ready = "";
      },
    });
    document.addEventListener("keydown", event => {
      if (event.key === "Escape") tippy.hideAll();
    });
  }

  // A box that scrolls sideways says so: its edge fades where more is to come, and the keyboard reaches it.
  const scrolling = ".bd-article mjx-container, .bd-article pre, .bd-article .cd-scroll, .bd-article .cd-canvas," +
    " .bd-article .pst-scrollable-table-container, .bd-article .cell_output .text_html";
  // What is a little too wide is set smaller instead, down to SMALLEST of its size.
  const SMALLEST = 0.72;
  const mark = box => {
    if (box.matches("mjx-container") && box.firstElementChild) {
      const inLine = !box.matches("[display]"), line = inLine ? box.closest("p, li, td, th, dd, dt, figcaption, div, h1, h2, h3, h4") : box;
      const style = getComputedStyle(line), room = line.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - (inLine ? 6 : 0);
      const drawn = box.firstElementChild, cell = box.closest("td, th"), width = () => drawn.getBoundingClientRect().width;
      box.dataset.size ??= parseFloat(box.style.fontSize) || 100; // MathJax has its own
      const own = +box.dataset.size, set = size => { box.style.fontSize = `${size}%`; };
      set(own);
      // step by step: a font's sizes are whole pixels, and widths follow them in jumps
      if (!cell) for (let size = own - 2; width() > room && size >= SMALLEST * own; size -= 2) set(size);
      const wide = width() > room;
      if (wide) set(own);
      if (inLine) box.classList.toggle("cd-wide", wide);
    }
    const room = box.scrollWidth - box.clientWidth, more = room > 1 && getComputedStyle(box).overflowX !== "visible";
    box.classList.toggle("cd-more-left", more && box.scrollLeft > 1);
    box.classList.toggle("cd-more-right", more && box.scrollLeft < room - 1);
    if (more) box.tabIndex = 0;
    else if (!box.matches("pre")) box.removeAttribute("tabindex");
  };
  // in the next frame: what is marked may change its size, which the observer must not see in its own round
  const sized = new ResizeObserver(entries => requestAnimationFrame(() => entries.forEach(entry => mark(entry.target))));
  addEventListener("resize", () => document.querySelectorAll("mjx-container:not([display])").forEach(mark));
  const watch = () => {
    for (const box of document.querySelectorAll(scrolling)) {
      if (box.dataset.watched !== undefined) continue;
      box.dataset.watched = "";
      box.addEventListener("scroll", () => mark(box), {passive: true});
      sized.observe(box);
    }
  };
  // No line begins with the point after a formula, or ends with the bracket before one.
  const together = () => {
    for (const formula of document.querySelectorAll(".bd-article mjx-container:not([display])")) {
      const whole = formula.parentElement.matches("span.math") ? formula.parentElement : formula;
      if (whole.parentElement.matches(".cd-together")) continue;
      const before = whole.previousSibling, after = whole.nextSibling;
      const opening = before?.nodeType === Node.TEXT_NODE ? before.data.match(/[([“‘]+$/)?.[0] : "";
      const closing = after?.nodeType === Node.TEXT_NODE ? after.data.match(/^(?:[.,;:!?)\]”’]+|['’]s|-\p{L}+)+/u)?.[0] : "";
      if (!opening && !closing) continue;
      const word = document.createElement("span");
      word.className = "cd-together";
      whole.before(word);
      if (opening) before.data = before.data.slice(0, -opening.length);
      if (closing) after.data = after.data.slice(closing.length);
      word.append(opening || "", whole, closing || "");
    }
  };
  // On paper proofs and the ledger's lines are open: where the style sheet cannot do it.
  const folded = () => document.querySelectorAll(".bd-article details:not([open]):is(.cd-checks, :not(.cell *))");
  addEventListener("beforeprint", () => folded().forEach(fold => fold.open = fold.dataset.folded = true));
  addEventListener("afterprint", () => document.querySelectorAll("details[data-folded]").forEach(fold => {
    fold.open = false;
    delete fold.dataset.folded;
  }));

  // What a search result quotes of a page: its prose, without code, contents and TeX.
  if (typeof Search !== "undefined") {
    const plain = tex => tex.replace(/\\[()]/g, "").replace(/\\(?:mathbb|mathcal|mathsf|operatorname|text)\b/g, "")
      .replace(/\\[,;:! ]/g, " ").replace(/\\([A-Za-z]+)/g, "$1").replace(/[{}\\]/g, "");
    Search.htmlToText = (page, anchor) => {
      const read = new DOMParser().parseFromString(page, "text/html");
      const article = read.querySelector("article") || read.body;
      article.querySelectorAll("script, style, svg, pre, .headerlink, .cd-controls, div.math, summary").forEach(e => e.remove());
      article.querySelectorAll("span.math").forEach(formula => formula.textContent = plain(formula.textContent));
      const part = (anchor && article.querySelector(anchor)) || article;
      return [...part.querySelectorAll("p, li, dd")].filter(e => !e.querySelector("p, li"))
        .map(e => e.textContent.replace(/\\\(.*?\\\)/gs, plain).replace(/\s+/g, " ").trim()).filter(Boolean).join(" ");
    };
  }

  // A link to something inside a fold, or to a claim, opens it.
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let at = target.parentElement; at; at = at.parentElement) if (at.matches("details")) at.open = true;
    if (target.matches(".cd-claim")) target.querySelectorAll("details").forEach(fold => fold.open = true);
    target.scrollIntoView();
  };

  document.addEventListener("DOMContentLoaded", async () => {
    watch();
    await window.MathJax?.startup?.promise;
    together();
    watch();
    unfold();
  });
  addEventListener("hashchange", unfold);
})();
