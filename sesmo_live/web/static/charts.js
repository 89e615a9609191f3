// Charts: every element with data-chart says in JSON what is drawn; uPlot draws it in the page's colours.
"use strict";
(() => {
  const drawn = new Map();
  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const tone = (name) => name.startsWith("#") ? name : ink(name);
  const faint = (colour, part) => `color-mix(in srgb, ${colour} ${part}%, transparent)`;
  const sorted = (xs, ...columns) => {
    const order = xs.map((_, i) => i).sort((a, b) => xs[a] - xs[b]);
    return [xs, ...columns].map((column) => order.map((i) => column[i]));
  };

  // Replicates at one dose share their x, and uPlot draws one value at each: later ones become lines of their own.
  const layers = (line) => {
    if (line.kind !== "points") return [line];
    const found = [];
    line.x.forEach((x, i) => {
      const free = found.find((layer) => !layer.x.includes(x));
      const layer = free || { ...line, x: [], y: [], low: line.low && [], high: line.low && [], again: found.length > 0 };
      if (!free) found.push(layer);
      for (const name of ["x", "y", "low", "high"]) layer[name]?.push(line[name][i]);
    });
    return found;
  };

  // One line is three columns: the value, and the two ends of its interval, drawn as a band or as bars.
  const columns = (asked) => {
    const tables = [];
    const series = [{}];
    const bands = [];
    const bars = [];
    for (const line of asked.lines.flatMap(layers)) {
      const colour = tone(line.tone);
      const start = series.length;
      const points = line.kind === "points";
      const bare = line.dash || line.kind === "curve";
      const hidden = { stroke: "transparent", width: 0, points: { show: false }, label: "", class: "edge" };
      const own = {
        label: line.label, stroke: colour, width: points ? 0 : 2.5, dash: line.dash ? [6, 5] : undefined,
        points: { show: !bare, size: points ? 9 : 7, fill: colour }, class: line.again ? "edge" : "own",
        value: (_, v) => v == null ? "–" : asked.y.log ? `${+v.toPrecision(3)}` : v.toFixed(2),
      };
      if (points) own.paths = () => null;
      series.push(own);
      const data = [line.y];
      if (line.low) {
        series.push({ ...hidden }, { ...hidden });
        data.push(line.low, line.high);
        if (points) bars.push([start, colour]);
        else bands.push({ series: [start + 2, start + 1], fill: faint(colour, line.dash ? 22 : 28) });
      }
      tables.push(sorted(line.x, ...data));
    }
    return { series, bands, bars, data: tables.length ? uPlot.join(tables) : [[]] };
  };
  const whiskers = (bars) => (u) => {
    const { ctx } = u;
    ctx.save();
    ctx.lineWidth = 1.6 * devicePixelRatio;
    for (const [start, colour] of bars) {
      ctx.strokeStyle = colour;
      ctx.beginPath();
      u.data[0].forEach((x, i) => {
        const [low, high] = [u.data[start + 1][i], u.data[start + 2][i]];
        if (low == null || high == null) return;
        const at = u.valToPos(x, "x", true);
        ctx.moveTo(at, u.valToPos(low, "y", true));
        ctx.lineTo(at, u.valToPos(high, "y", true));
      });
      ctx.stroke();
    }
    ctx.restore();
  };
  // What matters at one x: a line across the chart with a word beside it, and the strip of its interval.
  const marked = (marks) => (u) => {
    const { ctx } = u;
    const { left, top, width, height } = u.bbox;
    const within = (x) => Math.min(left + width, Math.max(left, x));
    ctx.save();
    ctx.font = `600 ${13 * devicePixelRatio}px system-ui`;
    ctx.textBaseline = "top";
    for (const mark of marks) {
      const at = u.valToPos(mark.x, "x", true);
      if ("low" in mark) {
        const from = mark.low == null ? left : within(u.valToPos(mark.low, "x", true));
        const to = mark.high == null ? left + width : within(u.valToPos(mark.high, "x", true));
        ctx.fillStyle = faint(ink("flag"), 14);
        ctx.fillRect(from, top, to - from, height);
      }
      ctx.strokeStyle = ctx.fillStyle = ink("flag");
      ctx.lineWidth = 2 * devicePixelRatio;
      ctx.beginPath();
      ctx.moveTo(at, top);
      ctx.lineTo(at, top + height);
      ctx.stroke();
      const beyond = at + ctx.measureText(mark.label).width + 12 * devicePixelRatio > left + width;
      ctx.textAlign = beyond ? "right" : "left";
      ctx.fillText(mark.label, at + (beyond ? -6 : 6) * devicePixelRatio, top + 4 * devicePixelRatio);
    }
    ctx.restore();
  };
  const axis = (label, size) => ({
    label, size, labelSize: 22, stroke: ink("ink"), font: "13px system-ui", labelFont: "600 13px system-ui",
    grid: { stroke: ink("line"), width: 1 }, ticks: { stroke: ink("line"), width: 1 },
  });
  const draw = (place) => {
    const asked = JSON.parse(place.dataset.chart);
    drawn.get(place)?.destroy();
    place.replaceChildren();
    const { series, bands, bars, data } = columns(asked);
    series[0] = { label: asked.x.label, value: (_, v) => v == null ? "–" : `${+v.toPrecision(4)}` };
    const x = { time: false, ...(asked.x.log ? { distr: 3 } : {}) };
    if (data[0].length === 1) x.range = (_, low, high) => asked.x.log ? [low / 3, high * 3] : [low - 1, high + 1];
    const legend = asked.lines.length <= 8;
    const chart = new uPlot({
      width: place.clientWidth || 300, height: 250, series, bands,
      scales: { x, y: asked.y.log ? { distr: 3 } : asked.y.range ? { range: asked.y.range } : { range: (_, _low, high) => [0, (high || 1) * 1.1] } },
      axes: [axis(asked.x.label, 44), axis(asked.y.label, 56)],
      hooks: { draw: [whiskers(bars), marked(asked.marks || [])] }, legend: { show: legend, live: legend }, cursor: { drag: { x: false, y: false } },
    }, data, place);
    chart.root.querySelectorAll(".u-series.edge").forEach((row) => row.remove());
    drawn.set(place, chart);
  };
  const all = () => {
    for (const place of drawn.keys()) if (!place.isConnected) { drawn.get(place).destroy(); drawn.delete(place); }
    for (const place of document.querySelectorAll("[data-chart]")) draw(place);
  };
  let resized = null;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(all, 150); });
  document.addEventListener("DOMContentLoaded", all);
  document.addEventListener("sesmo-theme", () => { if (drawn.size) all(); });
  document.addEventListener("htmx:afterSettle", (event) => {
    if (event.target.matches?.("[data-chart]") || event.target.querySelector?.("[data-chart]")) all();
  });
})();
