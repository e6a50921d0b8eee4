// A stream under a cursor: waveform, posteriors, detections, cost per step. Traits: `_spec` (packed),
// `frame`. With the id of an ArchView of the same steps the two move together.

async function render({ model, el }) {
  const s = await unpack(model.get("_spec"));
  const T = s.times.length;
  const [W, left, right, top, half, row] = [760, 92, 8, 20, 35, 13];
  const heat = top + 2 * half + 24, base = heat + s.classes.length * row + 50;
  const x = (seconds) => left + (seconds / s.seconds) * (W - left - right);
  const text = (content, x, y, anchor, more = {}) => h("text", { x, y, "text-anchor": anchor, ...more }, content);
  const column = (t, y, height, more) => h("rect", { x: x(s.times[t] + 0.5) - step / 2, y, width: step + 0.3, height, ...more });
  const step = x(s.seconds / T) - left;
  const svg = h("svg", { viewBox: `0 0 ${W} ${base + 32}`, class: "stream", role: "img", "aria-label": `${s.title}: waveform, posteriors and cost of every step` });

  const points = s.envelope.map((v, i) => [x((i / s.envelope.length) * s.seconds), v * half]);
  const outline = [...points, ...points.toReversed().map(([a, v]) => [a, -v])];
  svg.append(h("polygon", { class: "wave", points: outline.map(([a, v]) => `${a.toFixed(1)},${(top + half - v).toFixed(1)}`).join(" ") }));
  for (const [word, t] of s.truth) svg.append(text(word, x(t + 0.5), top - 6, "middle"));
  for (const [word, t] of s.found) svg.append(text(`▲ ${word}`, x(t + 0.5), heat - 8, "middle", { class: "found" }));
  s.classes.forEach((name, c) => {
    const y = heat + c * row;
    svg.append(h("line", { class: "rule", x1: left, x2: W - right, y1: y + row - 0.5, y2: y + row - 0.5 }), text(name, left - 6, y + 10, "end"));
    s.posteriors.forEach((p, t) => p[c] > 4 && svg.append(column(t, y, row - 1, { class: "posterior", opacity: p[c] / 100 })));
  });
  const highest = Math.max(...s.macs) || 1;
  s.macs.forEach((m, t) => svg.append(column(t, base - (40 * m) / highest, (40 * m) / highest, { class: "macs" })));
  svg.append(text("said", left - 6, top - 6, "end"), text("sound", left - 6, top + half + 4, "end"), text("heard", left - 6, heat - 8, "end"));
  svg.append(text("macs", left - 6, base - 4, "end"), text(format(highest), left - 6, base - 30, "end"));
  svg.append(h("path", { class: "axis", d: `M${left},${base + 0.5}H${W - right}` }));
  for (const q of ticks(0, s.seconds, 8)) svg.append(h("path", { class: "axis", d: `M${x(q)},${base}v4` }), text(q, x(q), base + 15, "middle", { class: "time" }));
  svg.append(text("seconds", (left + W - right) / 2, base + 28, "middle"));
  const cursor = h("rect", { class: "cursor", y: top, width: x(1) - left, height: base - top });
  svg.append(cursor);

  // what the colours mean
  const key = (name, words) => h("span", { class: name }, words);
  const legend = h("div", { class: "legend" }, key("posterior", "probability of a class, stronger is higher"), key("macs", "multiply-adds of the step"), key("window", "window of one second"), key("detection", "▲ detected word"));

  // the thumb stands below the middle of its window
  const slider = h("input", { type: "range", min: 0, max: T - 1, step: 1, "aria-label": "step of the stream" });
  const [from, to] = [x(s.times[0] + 0.5), x(s.times[T - 1] + 0.5)];
  const track = h("div", { class: "track", style: `margin: 0 calc(${100 * (1 - to / W)}% - 8px) 0 calc(${(100 * from) / W}% - 8px)` }, slider);
  const says = h("output", {});
  const go = (t) => {
    model.set("frame", Math.max(0, Math.min(T - 1, t)));
    model.save_changes();
  };
  const stepAt = (seconds) => s.times.findLastIndex((t) => t + 0.5 - s.seconds / T / 2 <= seconds);
  slider.addEventListener("input", () => go(Number(slider.value)));
  slider.addEventListener("keydown", (event) => event.stopPropagation()); // Jupyter's own shortcuts
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    go(stepAt(((((event.clientX - box.left) / box.width) * W - left) / (W - left - right)) * s.seconds));
  });
  const audio = s.audio ? h("audio", { controls: "", src: `data:audio/wav;base64,${s.audio}` }) : null;
  // while the sound plays the cursor follows it; else the sound follows the cursor
  audio?.addEventListener("timeupdate", () => audio.paused || go(stepAt(audio.currentTime)));
  function update() {
    const t = model.get("frame");
    const best = s.posteriors[t].indexOf(Math.max(...s.posteriors[t]));
    cursor.setAttribute("x", x(s.times[t]));
    slider.value = t;
    const network = s.network ? ` · network in the graph ${s.network[t]}` : "";
    says.textContent = `${s.times[t].toFixed(1)}–${(s.times[t] + 1).toFixed(1)} s · ${s.classes[best]} ${s.posteriors[t][best]} % · ${format(s.macs[t], "macs")}${network}`;
    slider.setAttribute("aria-valuetext", says.textContent);
    if (audio?.paused) audio.currentTime = s.times[t];
  }
  const root = h("div", { class: "nas-view nas-stream", role: "group", "aria-label": s.title });
  root.append(h("div", { class: "top" }, h("strong", {}, s.title)), h("div", { class: "scroll" }, h("div", { class: "wide" }, svg, track)), says, legend);
  if (audio) root.append(audio);
  el.append(root);
  model.on("change:frame", update);
  const unfollow = follow({ model, el }, s.view, go);
  update();
  return () => {
    unfollow();
    audio?.pause();
    model.off("change:frame", update);
  };
}

export default { render };
