// Opens each preview of the page once: [kind, detail] of those that a reader cannot read.
(async () => {
  const found = [];
  const say = (kind, link, why) => found.push([kind, `${link.getAttribute("href")}: ${why}`]);
  const links = [...document.querySelectorAll("a")].filter(link => link._tippy);
  for (const link of links)
    if (link.closest("nav, aside")) say("preview outside the text", link, "over the contents");
  const pause = ms => new Promise(done => setTimeout(done, ms));
  const once = [...new Map(links.map(link => [link.getAttribute("href"), link])).values()];
  let last = null;
  for (const link of once) {
    const tip = link._tippy, box = tip.popper;
    tip.setProps({duration: 0, delay: 0});
    tip.show();
    for (let i = 0; i < 40 && box.dataset.ready === undefined; i++) await pause(5);
    const content = box.querySelector(".tippy-content"), shown = box.getBoundingClientRect();
    const drawn = [...content.querySelectorAll("mjx-container > svg")];
    if (!document.contains(box)) say("unreadable preview", link, "it does not open");
    else if (!content.textContent.trim() && !drawn.length && !content.querySelector("svg, img"))
      say("unreadable preview", link, "nothing in it");
    else if (drawn.some(svg => /NaN/.test(svg.outerHTML.slice(0, 200)) || !svg.getBoundingClientRect().width))
      say("unreadable preview", link, "a formula without a size");
    else if (/\\\(|\\\[/.test(content.textContent)) say("unreadable preview", link, "a formula that is not set");
    else if (shown.height > 0.65 * innerHeight || shown.width > 600)
      say("unreadable preview", link, `${Math.round(shown.width)} x ${Math.round(shown.height)} px`);
    last = tip;
    if (link !== once.at(-1)) tip.hide();
  }
  if (last) {
    document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
    await pause(20);
    if (last.state.isVisible) say("preview that stays", last.reference, "Escape does not close it");
    last.hide();
  }
  return found;
})()
