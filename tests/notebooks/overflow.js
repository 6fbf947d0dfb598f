// Whether the page is wider than the window, and the first element that sticks out; null when it is not.
(() => {
  const room = document.documentElement.clientWidth, wide = document.documentElement.scrollWidth;
  if (wide <= room + 1) return null;
  const scrolls = e => { for (let at = e.parentElement; at && at !== document.body; at = at.parentElement)
    if (getComputedStyle(at).overflowX !== "visible") return true; return false; };
  const culprit = [...document.body.querySelectorAll("*")].find(
    e => e.getBoundingClientRect().right > room + 1 && !scrolls(e));
  return `${wide} px in ${room} px` + (culprit ? ": " + culprit.outerHTML.slice(0, 120) : "");
})()
