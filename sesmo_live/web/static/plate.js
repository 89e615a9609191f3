// The plate: arrow keys from well to well, what a well says, the time slider and its replay.
"use strict";
(() => {
  const STEP_MS = 900;
  let here = "";
  let playing = null;

  const wells = () => document.querySelectorAll("svg.plate a.well");
  const place = (well) => {
    const [, letters, digits] = /^([A-Z]+)(\d+)$/.exec(well);
    const row = letters.length === 2 ? 26 + letters.charCodeAt(1) - 64 : letters.charCodeAt(0) - 64;
    return [row, Number(digits)];
  };
  const say = (link) => {
    const readout = document.getElementById("readout");
    if (!readout) return;
    readout.textContent = link ? link.querySelector(".name").textContent : readout.dataset.rest;
  };
  const only = (link) => {
    for (const other of wells()) other.setAttribute("tabindex", other === link ? "0" : "-1");
    here = link.dataset.well;
  };
  const DIRECTIONS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

  // The nearest well in a direction: along the row or column first, past places that were not imaged.
  const next = (from, [down, right]) => {
    const [row, column] = place(from);
    let best = null;
    let least = Infinity;
    for (const link of wells()) {
      const [r, c] = place(link.dataset.well);
      const along = (r - row) * down + (c - column) * right;
      const aside = Math.abs((r - row) * right) + Math.abs((c - column) * down);
      const far = along + 100 * aside;
      if (along > 0 && far < least) { best = link; least = far; }
    }
    return best;
  };
  document.addEventListener("keydown", (event) => {
    const link = event.target.closest?.("svg.plate a.well");
    if (!link || event.altKey || event.ctrlKey || event.metaKey) return;
    const all = [...wells()];
    const target = DIRECTIONS[event.key] ? next(link.dataset.well, DIRECTIONS[event.key])
      : event.key === "Home" ? all[0] : event.key === "End" ? all.at(-1) : null;
    if (!target) return;
    event.preventDefault();
    only(target);
    target.focus();
  });
  document.addEventListener("focusin", (event) => {
    const link = event.target.closest?.("svg.plate a.well");
    if (link) { only(link); say(link); }
  });
  document.addEventListener("pointerover", (event) => {
    const link = event.target.closest?.("svg.plate a.well");
    if (link) say(link);
    else if (event.target.closest?.("svg.plate")) say(document.activeElement?.closest?.("svg.plate a.well"));
  });

  // Wells that left the control band get a flag, as soon as the panel beside the map tells of them.
  const SVG = "http://www.w3.org/2000/svg";
  const flag = () => {
    const told = document.getElementById("left");
    const flags = told ? JSON.parse(told.dataset.flags) : {};
    const sign = document.getElementById("sign-left");
    if (sign) sign.hidden = Object.keys(flags).length === 0;
    for (const link of wells()) {
      const words = flags[link.dataset.well];
      if (link.classList.contains("left") === (words !== undefined)) continue;
      const name = link.querySelector(".name");
      link.classList.toggle("left", words !== undefined);
      if (words === undefined) { link.querySelector("use")?.remove(); name.textContent = name.dataset.own; continue; }
      const { x, y, width } = link.querySelector(".disc").getBBox();
      const drawn = document.createElementNS(SVG, "use");
      drawn.setAttribute("href", "#left-flag");
      drawn.setAttribute("x", x + width * (link.classList.contains("alarm") ? 0.42 : 0.87));
      drawn.setAttribute("y", y + 8);
      link.append(drawn);
      name.dataset.own = name.textContent;
      name.textContent = `${name.textContent}, ${words}`;
    }
  };

  // The slider stands at a time point, or at its right end, where each well shows its latest.
  const slider = () => document.getElementById("time");
  const times = () => {
    const list = document.getElementById("times");
    return list ? JSON.parse(list.dataset.times) : [];
  };
  const show = () => {
    const range = slider();
    if (!range) return;
    const list = times();
    const at = Number(range.value);
    const words = at >= list.length ? "now: latest image" : `${list[at].label} (${at + 1} of ${list.length})`;
    document.getElementById("time-words").textContent = words;
    range.setAttribute("aria-valuetext", words);
    document.getElementById("timepoint").value = at >= list.length ? "" : list[at].timepoint;
  };
  const ask = () => { show(); document.body.dispatchEvent(new CustomEvent("sesmo-step")); };
  const follow = () => {
    const range = slider();
    if (!range) return;
    const end = Number(range.value) >= Number(range.max);
    const list = times();
    range.max = String(list.length);
    if (end && playing === null) range.value = range.max;
    range.disabled = list.length < 1;
    show();
  };
  const stop = () => {
    clearInterval(playing);
    playing = null;
    const button = document.getElementById("play");
    if (button) button.textContent = "▶ Replay";
  };
  const play = () => {
    const range = slider();
    range.value = "0";
    ask();
    document.getElementById("play").textContent = "■ Stop";
    playing = setInterval(() => {
      range.value = String(Number(range.value) + 1);
      if (Number(range.value) >= Number(range.max)) stop();
      ask();
    }, STEP_MS);
  };
  document.addEventListener("input", (event) => {
    if (event.target.id === "time") { if (playing !== null) stop(); ask(); }
  });
  document.addEventListener("click", (event) => {
    if (event.target.id === "play") { if (playing === null) play(); else { stop(); ask(); } }
  });
  document.addEventListener("DOMContentLoaded", follow);
  document.addEventListener("htmx:afterSettle", () => {
    follow();
    const link = here && document.getElementById(`well-${here}`);
    if (link) only(link);
    flag();
    say(document.activeElement?.closest?.("svg.plate a.well"));
  });
})();
