// What changes in the database changes on the page: one stream of events, told by the server.
"use strict";
(() => {
  const PAUSE_MS = 250; // the server tells of changes twice a second at most
  const sign = () => document.getElementById("live");
  let waiting = null;
  let last = 0;

  const refresh = () => {
    waiting = null;
    last = Date.now();
    document.body.dispatchEvent(new CustomEvent("sesmo-changed"));
  };
  const changed = () => {
    if (waiting === null) waiting = setTimeout(refresh, Math.max(0, last + PAUSE_MS - Date.now()));
  };
  const say = (state, words) => {
    const where = sign();
    if (where) { where.dataset.state = state; where.textContent = words; }
  };
  // A browser gives a host six connections: a tab that nobody sees must not hold one.
  let held = null;
  const leave = () => { held?.close(); held = null; };
  const listen = () => {
    const address = document.body.dataset.events;
    if (!address || held || document.hidden) return;
    const stream = new EventSource(address);
    held = stream;
    let lost = false;
    let seen = document.body.dataset.version; // the page was made of this state of the database
    stream.addEventListener("open", () => { say("on", "live"); if (lost) changed(); lost = false; });
    stream.addEventListener("error", () => {
      lost = true;
      say("off", "no connection, numbers may be old");
      if (stream.readyState !== EventSource.CLOSED || held !== stream) return;
      leave();
      setTimeout(listen, 3000);
    });
    stream.addEventListener("change", (event) => {
      if (event.data !== seen) changed();
      seen = event.data;
    });
  };
  const again = () => { listen(); changed(); };
  addEventListener("pagehide", leave);
  addEventListener("pageshow", (event) => { if (event.persisted) again(); });
  document.addEventListener("visibilitychange", () => { if (document.hidden) leave(); else again(); });
  document.addEventListener("DOMContentLoaded", listen);

  // An age ("12 s ago") grows by itself between two events.
  const age = (seconds) => seconds < 120 ? `${Math.max(0, Math.round(seconds))} s`
    : seconds < 10800 ? `${Math.round(seconds / 60)} min` : seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h`
      : `${Math.round(seconds / 86400)} days`;
  const grow = () => {
    for (const place of document.querySelectorAll("time[data-age]")) {
      const words = `${age((Date.now() - Date.parse(place.dateTime)) / 1000)} ago`;
      if (place.textContent !== words) place.textContent = words;
    }
  };
  setInterval(grow, 1000);
  document.addEventListener("DOMContentLoaded", grow);
  document.addEventListener("htmx:afterSwap", grow);

  // A part that came as it was is not swapped: pictures do not flicker. What was unfolded stays unfolded.
  // Nothing is swapped beneath a pressed finger or button, or the click would be lost.
  const shown = new WeakMap();
  let pressed = false;
  let missed = false;
  const release = () => setTimeout(() => {
    pressed = false;
    if (missed) { missed = false; changed(); }
  }, 60);
  addEventListener("pointerdown", () => { pressed = true; }, true);
  for (const name of ["pointerup", "pointercancel", "blur"]) addEventListener(name, release, true);
  // What a person unfolded stays so: two fragments may come at once, so that no swap may decide it by what it finds.
  const unfolded = new Set();
  document.addEventListener("toggle", ({ target }) => {
    if (target.id && target.matches("details")) unfolded[target.open ? "add" : "delete"](target.id);
  }, true);
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { target, serverResponse, xhr } = event.detail;
    if (xhr.status !== 200) return;
    if (pressed) { event.detail.shouldSwap = false; missed = true; return; }
    if (shown.get(target) === serverResponse) event.detail.shouldSwap = false;
    shown.set(target, serverResponse);
  });
  document.addEventListener("htmx:afterSettle", () => {
    for (const id of unfolded) {
      const item = document.getElementById(id);
      if (!item || item.open) continue;
      htmx.process(item); // what it fetches when it is unfolded: htmx may not have seen it yet
      item.open = true;
    }
  });

  // A fragment that could not be had is said, and asked for again with the next change.
  document.addEventListener("htmx:responseError", () => say("off", "the service answered with an error"));
  document.addEventListener("htmx:sendError", () => say("off", "no connection, numbers may be old"));

  // Suggestions of the search box are followed as soon as one is picked.
  document.addEventListener("change", (event) => {
    if (event.target.id === "find" && event.target.value) event.target.form.requestSubmit();
  });
})();
