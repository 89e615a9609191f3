// What is done with a click: writing with a token that is asked for once, and what the model sees.
"use strict";
(() => {
  const KEY = "sesmo-token";
  const kept = () => { try { return sessionStorage.getItem(KEY) || ""; } catch { return ""; } };
  const keep = (token) => { try { sessionStorage.setItem(KEY, token); } catch { /* asked for again */ } };
  const element = (name, text, attributes = {}) => {
    const made = document.createElement(name);
    made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };
  const say = (words, bad = false) => {
    document.getElementById("said")?.remove();
    const place = element("p", words, { id: "said", class: bad ? "say bad" : "say", role: bad ? "alert" : "status" });
    document.getElementById("main").prepend(place);
    if (!bad) setTimeout(() => place.remove(), 8000);
  };

  // Ask one line in a dialogue; resolves to the text, or to null when it was closed.
  const ask = (question, type, hint = "") => new Promise((resolve) => {
    const dialog = element("dialog", "");
    const form = element("form", "", { method: "dialog" });
    const input = element("input", "", { id: "answer", type, required: "", autocomplete: "off", maxlength: "500" });
    const row = element("p", "", { class: "row" });
    const cancel = element("button", "Cancel", { type: "button" });
    row.append(element("button", "OK", { value: "ok" }), cancel);
    form.append(element("label", question, { for: "answer" }), element("p", hint, { class: "small soft" }), input, row);
    dialog.append(form);
    document.body.append(dialog);
    cancel.addEventListener("click", () => dialog.close(""));
    dialog.addEventListener("close", () => { resolve(dialog.returnValue === "ok" ? input.value : null); dialog.remove(); });
    dialog.showModal();
    input.focus();
  });
  const TOKEN_HINT = "It lies in the file beside the database whose name ends in .token, unless another was configured.";

  const send = async (address, method, body, again = false) => {
    const file = body instanceof Blob;
    let token = kept();
    if (!token) {
      token = await ask("Changing something needs this service's token:", "password", TOKEN_HINT);
      if (token === null) return null;
    }
    const headers = { Authorization: `Bearer ${token}`, ...(body ? { "Content-Type": file ? "application/octet-stream" : "application/json" } : {}) };
    const answer = await fetch(address, { method, headers, body: file ? body : body ? JSON.stringify(body) : undefined });
    if (answer.status === 401 && !again) { keep(""); say("That token is not the one of this service.", true); return send(address, method, body, true); }
    if (answer.status !== 401) keep(token);
    return answer;
  };
  const sentence = async (answer) => {
    try {
      const { detail } = await answer.json();
      return typeof detail === "string" ? detail : detail[0].msg;
    } catch { return `the service answered ${answer.status}`; }
  };
  const write = async (button) => {
    const body = button.dataset.ask ? { reason: await ask(button.dataset.ask, "text") }
      : button.dataset.body ? JSON.parse(button.dataset.body) : null;
    if (body && body.reason === null) return;
    try {
      const answer = await send(button.dataset.write, button.dataset.method || "POST", body);
      if (answer === null) return;
      if (!answer.ok) { say(await sentence(answer), true); return; }
      say(button.dataset.done);
      document.body.dispatchEvent(new CustomEvent("sesmo-changed"));
    } catch { say("The service does not answer; nothing was changed.", true); }
  };

  // A plate map is sent as the file is; what was read from it is said.
  const upload = async (form) => {
    const file = form.querySelector("[type=file]").files[0];
    const treated = form.querySelector("#map-treated").value.trim();
    const asked = new URLSearchParams({ filename: file.name, ...(treated ? { treated_at: treated } : {}) });
    try {
      const answer = await send(`${form.dataset.upload}?${asked}`, "PUT", file);
      if (answer === null) return;
      if (!answer.ok) { say(await sentence(answer), true); return; }
      const told = await answer.json();
      say([`Imported: ${told.wells} wells, ${told.compounds} compounds, ${told.negative} negative and ${told.positive} positive controls.`, ...told.notes].join(" "));
      form.reset();
      document.body.dispatchEvent(new CustomEvent("sesmo-changed"));
    } catch { say("The service does not answer; nothing was changed.", true); }
  };
  document.addEventListener("submit", (event) => {
    if (!event.target.dataset.upload) return;
    event.preventDefault();
    upload(event.target);
  });

  const explain = async (button) => {
    const dialog = element("dialog", "", { class: "wide" });
    const place = element("p", "The model is asked; the first time this takes up to a minute …", { role: "status" });
    const close = element("button", "Close", { type: "button" });
    dialog.append(element("h2", button.dataset.title), place, close);
    dialog.setAttribute("aria-label", button.dataset.title);
    document.body.append(dialog);
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => { dialog.remove(); button.focus(); });
    dialog.showModal();
    try {
      const answer = await fetch(button.dataset.gradcam);
      if (!answer.ok) { place.textContent = await sentence(answer); return; }
      const picture = new Image();
      picture.alt = "Grad-CAM over the field: orange speaks for senescent, blue for healthy";
      picture.src = button.dataset.gradcam;
      place.replaceWith(element("p", "Orange speaks for senescent, blue for healthy.", { class: "small" }), picture);
    } catch { place.textContent = "The service does not answer; try again."; }
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-write], [data-gradcam]");
    if (!button) return;
    if (button.dataset.write) write(button); else explain(button);
  });

  // A picture that cannot be had says so in words.
  document.addEventListener("error", (event) => {
    if (event.target.tagName !== "IMG" || event.target.dataset.gone) return;
    event.target.dataset.gone = "1";
    event.target.hidden = true;
    if (event.target.parentElement.className === "frame") event.target.after(element("p", "The image file is not there any more, or cannot be shown.", { class: "gone soft small" }));
  }, true);

  // New time points join the choice; what was chosen stays chosen.
  document.addEventListener("htmx:afterSettle", () => {
    const select = document.getElementById("which");
    const list = document.getElementById("points");
    for (const point of select && list ? JSON.parse(list.dataset.points) : []) {
      const options = [...select.options].filter((option) => option.value !== "");
      const known = options.find((option) => option.value === String(point.timepoint));
      const next = options.find((option) => Number(option.value) > point.timepoint) ?? null;
      if (known) known.text = point.label; else select.add(new Option(point.label, point.timepoint), next);
    }
  });

  // Tables that are closed are not fetched.
  const TABLES = { "table-of-wells": "sesmo-table", hits: "sesmo-hits" };
  const fetchTable = (place) => {
    if (place?.open && TABLES[place.id]) document.body.dispatchEvent(new CustomEvent(TABLES[place.id]));
  };
  document.addEventListener("toggle", (event) => fetchTable(event.target), true);
  for (const name of ["sesmo-changed", "sesmo-step"]) {
    document.body.addEventListener(name, () => { for (const id of Object.keys(TABLES)) fetchTable(document.getElementById(id)); });
  }
})();
