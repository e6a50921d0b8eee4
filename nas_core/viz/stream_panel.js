// A stream under a cursor: waveform, posteriors, detections, cost per step. Traits: `_spec`, `frame`.
// Linked by jslink to an ArchView of the same steps it needs no kernel. No imports, plain SVG.

const NS = "http://www.w3.org/2000/svg";
function h(tag, attributes = {}, text = "") {
  const svg = tag !== "div" && tag !== "audio" && tag !== "input";
  const node = svg ? document.createElementNS(NS, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  return node;
}

function render({ model, el }) {
  const s = model.get("_spec");
  const W = 760, left = 70, top = 14, wave = 70, row = 11, C = s.classes.length, T = s.times.length;
  const heat = top + wave + 22, cost = heat + C * row + 8, bottom = cost + 44;
  const x = (seconds) => left + (seconds / s.seconds) * (W - left - 8);
  const svg = h("svg", { viewBox: `0 0 ${W} ${bottom + 18}`, width: "100%", role: "img", "aria-label": s.title });
  const half = wave / 2;
  const points = s.envelope.map((v, i) => [x((i / s.envelope.length) * s.seconds), v]);
  const outline = [...points.map(([a, v]) => `${a.toFixed(1)},${(top + half - v * half).toFixed(1)}`),
    ...points.reverse().map(([a, v]) => `${a.toFixed(1)},${(top + half + v * half).toFixed(1)}`)];
  svg.append(h("polygon", { points: outline.join(" "), fill: "currentColor", opacity: 0.45 }));
  for (const [word, t] of s.truth) svg.append(h("text", { x: x(t + 0.5), y: top - 3, "text-anchor": "middle", "font-size": 9, fill: "currentColor" }, word));
  for (const [word, t] of s.found) svg.append(h("text", { x: x(t + 0.5), y: heat - 6, "text-anchor": "middle", "font-size": 9, fill: "#C03A00" }, `▲ ${word}`));
  const step = x(s.seconds / T) - left;
  s.classes.forEach((name, c) => {
    svg.append(h("text", { x: left - 6, y: heat + c * row + 9, "text-anchor": "end", "font-size": 9, fill: "currentColor" }, name));
    s.posteriors.forEach((p, t) => p[c] > 4 && svg.append(h("rect", { x: x(s.times[t] + 0.5) - step / 2, y: heat + c * row, width: step + 0.3, height: row - 1, fill: "#0072B2", opacity: p[c] / 100 })));
  });
  const top_cost = Math.max(...s.macs);
  s.macs.forEach((m, t) => svg.append(h("rect", { x: x(s.times[t] + 0.5) - step / 2, y: bottom - (36 * m) / top_cost, width: step + 0.3, height: (36 * m) / top_cost, fill: "#009E73" })));
  svg.append(h("text", { x: left - 6, y: bottom - 12, "text-anchor": "end", "font-size": 9, fill: "currentColor" }, "macs"));
  const cursor = h("rect", { y: top, height: bottom - top, fill: "#D07C00", opacity: 0.22 });
  svg.append(cursor);
  const slider = h("input", { type: "range", min: 0, max: T - 1, step: 1, "aria-label": "step of the stream", style: `width:100%` });
  const says = h("div", { "aria-live": "polite", style: "font-size:13px" });
  const root = h("div", { class: "nas-stream", role: "group", "aria-label": s.title });
  root.append(svg, slider, says);
  if (s.audio) root.append(h("audio", { controls: "", src: s.audio, style: "width:100%" }));
  const go = (t) => (model.set("frame", Math.max(0, Math.min(T - 1, t))), model.save_changes());
  slider.addEventListener("input", () => go(Number(slider.value)));
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    const seconds = ((((event.clientX - box.left) / box.width) * W - left) / (W - left - 8)) * s.seconds;
    go(Math.round(((seconds - 0.5) / s.seconds) * T));
  });
  function update() {
    const t = model.get("frame");
    cursor.setAttribute("x", x(s.times[t]));
    cursor.setAttribute("width", x(s.times[t] + 1) - x(s.times[t]));
    slider.value = t;
    const best = s.posteriors[t].indexOf(Math.max(...s.posteriors[t]));
    says.textContent = `${s.times[t].toFixed(1)}–${(s.times[t] + 1).toFixed(1)} s · ${s.classes[best]} ${s.posteriors[t][best]} % · ${Math.round(s.macs[t] / 1000)} k macs`;
  }
  model.on("change:frame", update);
  el.append(root);
  update();
  return () => model.off("change:frame", update);
}

export default { render };
