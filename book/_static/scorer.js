// How Sphinx's search weighs what it finds: its own numbers, and more for a page whose title has every word of the query,
// most for a chapter. (A heading inside a page has an anchor; equal scores are sorted by the alphabet.)
// oxlint-disable-next-line no-var, no-unused-vars -- Sphinx looks for the global name
var Scorer = {
  score: ([docname, title, anchor, , score]) => {
    const words = (new URLSearchParams(location.search).get("q") || "").toLowerCase().split(/\s+/).filter(Boolean);
    const titled = words.length && words.every(word => title.toLowerCase().includes(word.replace(/(es|s|ing)$/, "")));
    const chapter = /(^|\/)executed\//.test(docname);
    return score + (titled ? 20 : 0) + (titled && !anchor && chapter ? 200 : 0) + (chapter ? 1 : 0);
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
