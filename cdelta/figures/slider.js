// Rewrites each layer's path when the slider moves. It never plays unasked, nor for a reader who
// wants less motion. PREFIX stands for the figure's id: a page holds several figures.
(() => {
  const figure = document.getElementById("PREFIX");
  const frames = JSON.parse(figure.querySelector("script").textContent);
  const slider = figure.querySelector("input[type=range]"), text = figure.querySelector("output");
  const play = figure.querySelector("button"), box = figure.querySelector("input[type=checkbox]");
  const paths = frames.d.map((_, i) => document.getElementById("PREFIX-path-" + i));
  const say = (sign, label, pressed) => {
    play.textContent = sign;
    play.setAttribute("aria-label", label);
    play.setAttribute("aria-pressed", pressed);
  };
  let timer = null;
  const draw = () => {
    // the frames of the ticked box follow those of the empty one
    const f = +slider.value + (box?.checked ? +slider.max + 1 : 0);
    paths.forEach((path, i) => path.setAttribute(path.matches("image") ? "href" : "d", frames.d[i][f]));
    text.textContent = frames.text[f];
    slider.setAttribute("aria-valuetext", frames.text[f]);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    say("▶", "Play", "false");
  };
  const step = () => {
    slider.value = +slider.value + 1;
    draw();
    if (slider.value === slider.max) stop();
  };
  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    if (slider.value === slider.max) slider.value = 0;
    say("❚❚", "Pause", "true");
    timer = setInterval(step, 90);
  });
  slider.addEventListener("input", () => {
    stop();
    draw();
  });
  box?.addEventListener("change", draw);
  play.hidden = matchMedia("(prefers-reduced-motion: reduce)").matches;
  figure.querySelector(".cd-controls").hidden = false;
  draw();
})();
