// The live graph of an architecture: one model, plain SVG, no imports, works without a kernel.
//
// Model traits: `_spec` (all that never changes, packed, see arch_view.py), `mask` ("0101…", the
// edges that are switched on), `frame` (which recorded state is shown), `_priced` ([mask, cost],
// the answer of the real cost object in Python).

/** Switched-on edges on a live path from source to sink: the two passes of Graph.reachable. */
export function reachable(spec, mask) {
  const live = mask.slice();
  const alive = new Uint8Array(spec.nodes.length);
  const wanted = new Uint8Array(spec.nodes.length);
  alive[0] = wanted[wanted.length - 1] = 1;
  for (const e of spec.order) {
    live[e] &= alive[spec.edges[e].s];
    alive[spec.edges[e].t] |= live[e];
  }
  for (const e of [...spec.order].reverse()) {
    live[e] &= wanted[spec.edges[e].t];
    wanted[spec.edges[e].s] |= live[e];
  }
  return live;
}

/** Cost of a pruned mask as the sum of a table with one number per edge. */
export const additive = (table, live) => table.reduce((sum, c, e) => sum + (live[e] ? c : 0), 0);

/** One draw: independent edges, or one edge out of each group (everything outside is kept). */
export function draw(spec, p, random = Math.random) {
  if (!spec.groups) return Uint8Array.from(p, (q) => +(random() < q));
  const mask = new Uint8Array(p.length).fill(1);
  for (const group of spec.groups) {
    let left = random() * group.reduce((sum, e) => sum + p[e], 0);
    const last = group.filter((e) => p[e] > 0).pop();
    const chosen = group.find((e) => (left -= p[e]) < 0) ?? last;
    for (const e of group) mask[e] = +(e === chosen);
  }
  return mask;
}

/** A share in percent, with two digits where it is small. */
export const percent = (share) => `${share > 0 && share < 0.01 ? Number((100 * share).toPrecision(2)) : Math.round(100 * share)} %`;

const curve = ([from, ...others]) => `M${from}C${others.join(" ")}`;
const triangle = (corners) => `M${corners.join(" ")}Z`;
const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const toMask = (text) => Uint8Array.from(text, Number);

/** Arrow keys move the single tab stop among `items`; Enter and Space act. */
function roving(container, items, act, { follow = false } = {}) {
  let current = 0;
  items.forEach((item) => item.setAttribute("tabindex", "-1"));
  const go = (i) => {
    items[current].setAttribute("tabindex", "-1");
    current = (i + items.length) % items.length;
    items[current].setAttribute("tabindex", "0");
  };
  go(0);
  container.addEventListener("focusin", (event) => {
    const i = items.indexOf(event.target);
    if (i >= 0) go(i);
  });
  container.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const jump = { Home: 0, End: items.length - 1 }[event.key];
    if (step !== undefined || jump !== undefined) {
      go(jump ?? current + step);
      items[current].focus();
      if (follow) act(current);
    } else if (event.key === "Enter" || event.key === " ") act(current);
    else return;
    event.preventDefault();
    event.stopPropagation(); // Jupyter's own shortcuts
  });
  items.forEach((item, i) => item.addEventListener("click", () => (item.focus(), act(i))));
}

async function render({ model, el }) {
  const spec = await unpack(model.get("_spec"));
  const E = spec.edges.length;
  const T = spec.count;
  const table = bytes(spec.frames); // [T, E] probabilities in 1/255
  const packed = bytes(spec.modes); // [T, E] most probable architectures, one bit per edge
  const width = Math.ceil(E / 8);
  const frameMask = (t) => Uint8Array.from({ length: E }, (_, e) => (packed[t * width + (e >> 3)] >> (e & 7)) & 1);
  const probability = (t, e) => table[t * E + e] / 255;
  const frameName = (t) => spec.names?.[t] ?? `${spec.label} ${t + 1} of ${T}`;
  let timer = null;

  // ------------------------------------------------------------------ the graph
  const edges = spec.edges.map((edge) => {
    const line = h("path", { class: "line", d: curve(edge.shape[0]) });
    const head = h("path", { class: "head", d: triangle(edge.shape[1]) });
    const title = h("title");
    const group = h("g", { role: "switch", "data-edge": edge.n }, title, h("path", { class: "hit", d: curve(edge.shape[0]) }), line, head);
    const label = h("text", { class: "probability", x: edge.shape[2][0], y: edge.shape[2][1] + 3 });
    const [, k] = spec.kinds[edge.k];
    group.style.setProperty("--kind", `var(--k${k})`);
    return { group, line, head, title, label, seen: "" };
  });
  const nodes = spec.nodes.map(([name, x, y, hw, hh, role, label, dy]) => {
    const box = h("rect", { x: x - hw, y: y - hh, width: 2 * hw, height: 2 * hh, rx: Math.min(hw, hh) });
    const text = h("text", { x, y: y + dy + 3.5, class: dy ? "outside" : "" }, label);
    return h("g", { class: `node ${role}` }, h("title", {}, name), box, text);
  });
  const graph = h(
    "svg",
    { class: "graph", width: spec.width, height: spec.height, viewBox: `0 0 ${spec.width} ${spec.height}`, role: "group", "aria-label": "edges of the graph; arrow keys move, Enter toggles" },
    ...edges.map((e) => e.group), h("g", { class: "labels", "aria-hidden": "true" }, ...edges.map((e) => e.label)), ...nodes,
  );
  graph.style.minWidth = `${0.8 * spec.width}px`; // labels stay readable; narrow pages scroll
  graph.style.maxWidth = `${spec.width}px`;
  const summary = h("span", { class: "summary" });
  const detail = h("div", { class: "detail", "aria-live": "polite" });
  const legend = h("div", { class: "legend" });
  for (const [kind, k] of spec.kinds) legend.append(h("span", { style: `--kind: var(--k${k})` }, kind || "edge"));
  legend.append(h("span", { class: "off" }, "off"), h("span", { class: "dead" }, "on, but on no path"));

  const describe = (e, on, live, p) => {
    const { n, m, a, p: params } = spec.edges[e];
    const state = live ? "on" : on ? "on, but on no path" : "off";
    const parts = [n, m, a === null ? "" : format(a, "macs"), format(params, "parameters")];
    if (spec.probable) parts.push(`probability ${p.toFixed(2)}`);
    return [...parts, state].filter(Boolean).join(" · ");
  };

  // ------------------------------------------------------------------ controls
  const button = (text, action, label = text) => {
    const node = h("button", { type: "button", "aria-label": label }, text);
    node.addEventListener("click", action);
    return node;
  };
  const setMask = (mask) => {
    stop();
    model.set("mask", mask.join(""));
    model.save_changes();
  };
  const setFrame = (t) => model.set({ frame: t, mask: frameMask(t).join("") });
  const current = () => Math.min(Math.max(model.get("frame"), 0), T - 1);
  const another = button("sample another", () => {
    if (spec.sampling === "kernel") model.send({ type: "sample" });
    else setMask(draw(spec, Array.from({ length: E }, (_, e) => probability(current(), e))));
  });
  another.disabled = Array.from(table).every((q) => q === 0 || q === 255) && spec.sampling === "page";
  if (another.disabled) another.title = "all probabilities are 0 or 1: every sample is the same";
  another.hidden = spec.sampling === "kernel" && !model.send; // the twin cannot ask Python
  const probable = button("most probable", () => setMask(frameMask(current())));
  const controls = h("div", { class: "controls" }, ...(spec.probable ? [another, probable] : [button("reset", () => setMask(frameMask(current())), "reset to the recorded architecture")]));

  if (spec.height > 560) { // more than the picture's frame shows
    const whole = button("whole graph", () => {
      const fits = graph.classList.toggle("fits");
      whole.setAttribute("aria-pressed", fits);
      whole.textContent = fits ? "readable size" : "whole graph";
    });
    controls.append(whole);
  }

  const slider = h("input", { type: "range", min: 0, max: T - 1, step: 1, "aria-label": spec.label });
  const when = h("output", { class: "when" });
  const play = button("▶", () => (timer === null ? start() : stop()), "play");
  function start() {
    if (current() === T - 1) setFrame(0);
    // readers who asked their system for less motion see a few slow steps
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const stride = calm ? Math.ceil(T / 12) : 1;
    timer = setInterval(() => {
      if (!el.isConnected || current() >= T - 1) stop();
      else setFrame(Math.min(current() + stride, T - 1)); // local: Python hears of the last one
    }, calm ? 700 : Math.min(700, Math.max(33, 8000 / T)));
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "pause");
  }
  function stop() {
    if (timer === null) return;
    clearInterval(timer);
    timer = null;
    play.textContent = "▶";
    play.setAttribute("aria-label", "play");
    model.save_changes();
  }
  slider.addEventListener("input", () => { stop(); setFrame(+slider.value); });
  slider.addEventListener("change", () => model.save_changes());
  slider.addEventListener("keydown", (event) => event.stopPropagation());
  const timeline = h("div", { class: "timeline" }, play, h("div", { class: "track" }, ...(spec.costs ? [sparkline()] : []), slider), when);

  function sparkline() {
    const top = Math.max(...spec.costs, spec.budget ?? 0) || 1;
    const at = (t, c) => `${((t + 0.5) / T) * 100},${26 - (c / top) * 24}`;
    const svg = h("svg", { class: "spark", viewBox: "0 0 100 28", preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(h("polyline", { points: spec.costs.map((c, t) => at(t, c)).join(" ") }));
    if (spec.budget !== null) svg.append(h("path", { class: "budget", d: `M0,${26 - (spec.budget / top) * 24}H100` }));
    return svg;
  }

  // ------------------------------------------------------------------ cost and budget
  const fill = h("div", { class: "fill" });
  const tick = h("div", { class: "tick" });
  const price = h("span", { class: "price", role: "status" });
  const longest = Math.max(spec.full ?? 0, spec.budget ?? 0) * 1.02 || 1;
  if (spec.budget !== null) tick.style.left = `${(100 * spec.budget) / longest}%`;
  else tick.hidden = true;
  const bar = h("div", { class: "cost" }, h("span", { class: "name" }, spec.cost_name), h("div", { class: "bar" }, fill, tick), price);

  function showCost(live, text, t) {
    if (spec.full === null) return;
    const [priced, value] = model.get("_priced");
    let cost = null;
    if (spec.table) cost = additive(spec.table, live);
    else if (priced === text) cost = value;
    else if (spec.costs && frameMask(t).join("") === text) cost = spec.costs[t];
    const over = spec.budget !== null && cost > spec.budget;
    bar.classList.toggle("over", over);
    fill.style.width = `${Math.min(100, (100 * (cost ?? 0)) / longest)}%`;
    const budget = spec.budget === null ? `${percent(cost / (spec.full || 1))} of the full network` : `${over ? "✗ over the" : "✓ within the"} budget of ${format(spec.budget, spec.unit)}`;
    price.textContent = cost === null ? "this cost needs the running kernel" : live.some(Boolean) ? `${format(cost, spec.unit)} — ${budget}` : "no path from source to sink";
  }

  // ------------------------------------------------------------------ front of several runs
  const scatter = spec.points ? pareto() : null;
  function pareto() {
    const { x, y, name, front, xlabel, ylabel } = spec.points;
    const [w, v, left, bottom] = [330, 250, 52, 40];
    const axis = (values, from, to) => {
      const low = Math.min(...values), high = Math.max(...values), pad = (high - low || Math.abs(high) || 1) * 0.08;
      return { at: (q) => from + ((q - low + pad) / (high - low + 2 * pad)) * (to - from), ticks: ticks(low - pad, high + pad) };
    };
    const [ax, ay] = [axis(x, left, w - 10), axis(y, v - bottom, 10)];
    const svg = h("svg", { class: "scatter", viewBox: `0 0 ${w} ${v}`, role: "radiogroup", "aria-label": `runs by ${xlabel} and ${ylabel}; arrow keys choose one` });
    svg.append(h("path", { class: "axis", d: `M${left},8V${v - bottom}H${w - 8}` }));
    for (const q of ax.ticks) svg.append(h("text", { x: ax.at(q), y: v - bottom + 15, class: "tickx" }, format(q)));
    for (const q of ay.ticks) svg.append(h("text", { x: left - 6, y: ay.at(q) + 3, class: "ticky" }, format(q)));
    svg.append(h("text", { x: (left + w) / 2, y: v - 6, class: "tickx name" }, xlabel), h("text", { class: "tickx name", transform: `translate(12 ${(v - bottom) / 2}) rotate(-90)` }, ylabel));
    const order = x.map((_, i) => i).sort((i, j) => x[i] - x[j]);
    const steps = order.filter((i) => front[i]).map((i, n) => (n ? `H${ax.at(x[i])}V${ay.at(y[i])}` : `M${ax.at(x[i])},${ay.at(y[i])}`));
    svg.append(h("path", { class: "front", d: steps.join("") }));
    const dots = order.map((i) => {
      const label = `${name[i]}: ${xlabel} ${format(x[i])}, ${ylabel} ${format(y[i])}${front[i] ? ", on the front" : ""}`;
      return h("circle", { cx: ax.at(x[i]), cy: ay.at(y[i]), r: 6, class: front[i] ? "dot best" : "dot", role: "radio", "aria-label": label, "data-point": i }, h("title", {}, label));
    });
    svg.append(...dots);
    roving(svg, dots, (i) => { setFrame(order[i]); model.save_changes(); }, { follow: true });
    return { svg, show: (t) => dots.forEach((dot, i) => dot.setAttribute("aria-checked", order[i] === t)) };
  }

  // ------------------------------------------------------------------ showing a state
  // An edge that was clicked or focused stays described until the pointer is on another one.
  let hovered = -1, selected = -1;
  const tell = () => {
    const e = hovered >= 0 ? hovered : selected;
    detail.textContent = e >= 0 ? edges[e].group.getAttribute("aria-label") : "Point at an edge to see its module; click or press Enter to switch it.";
    edges.forEach((edge, i) => edge.group.classList.toggle("selected", i === selected));
  };
  function update() {
    const text = model.get("mask");
    const mask = toMask(text);
    const live = reachable(spec, mask);
    const t = current();
    const lit = new Uint8Array(spec.nodes.length);
    edges.forEach((edge, e) => {
      const p = probability(t, e);
      if (live[e]) lit[spec.edges[e].s] = lit[spec.edges[e].t] = 1;
      const key = `${mask[e]}${live[e]}${table[t * E + e]}`;
      if (key === edge.seen) return; // most frames change few edges
      edge.seen = key;
      const words = describe(e, mask[e], live[e], p);
      edge.group.setAttribute("class", `edge ${live[e] ? "live" : mask[e] ? "dead" : "off"}${e === selected ? " selected" : ""}`);
      edge.group.setAttribute("aria-checked", mask[e] ? "true" : "false");
      edge.group.setAttribute("aria-label", words);
      edge.title.textContent = words;
      const thickness = live[e] ? (spec.probable ? 1 + 4.5 * p : 2.6) : mask[e] ? 1.5 : 1.1;
      edge.line.style.strokeWidth = `${thickness * spec.thickness}px`;
      edge.group.style.opacity = live[e] && spec.probable ? 0.35 + 0.65 * p : 1;
      if (spec.labels) edge.label.textContent = p.toFixed(2);
    });
    nodes.forEach((node, i) => node.classList.toggle("lit", lit[i] === 1));
    const kept = live.reduce((a, b) => a + b, 0);
    const dead = mask.reduce((a, b) => a + b, 0) - kept;
    summary.textContent = `${kept} of ${E} edges${dead ? `, ${dead} more on no path` : ""}`;
    slider.value = t;
    slider.setAttribute("aria-valuetext", frameName(t));
    when.textContent = frameName(t);
    tell();
    showCost(live, text, t);
    scatter?.show(t);
  }
  const edgeAt = (target) => edges.findIndex((edge) => edge.group.contains(target));
  graph.addEventListener("pointerover", ({ target }) => {
    hovered = edgeAt(target);
    tell();
    const node = nodes.findIndex((n) => n.contains(target));
    if (node >= 0) detail.textContent = `node ${spec.nodes[node][0]}`;
  });
  graph.addEventListener("pointerleave", () => ((hovered = -1), tell()));
  graph.addEventListener("focusin", ({ target }) => ((selected = edgeAt(target)), tell()));
  roving(graph, edges.map((e) => e.group), (e) => {
    const mask = toMask(model.get("mask"));
    mask[e] = 1 - mask[e];
    setMask(mask);
  });

  const root = h("div", { class: "nas-view nas-arch", role: "group", "aria-label": spec.title });
  const picture = h("div", { class: "picture" }, h("div", { class: "scroll" }, graph), legend);
  picture.style.flexBasis = `${Math.min(560, spec.width * 0.6)}px`; // below the points where it is narrow
  root.append(h("div", { class: "top" }, h("strong", {}, spec.title), summary), h("div", { class: "panes" }, ...(scatter ? [scatter.svg] : []), picture), detail);
  if (spec.points) controls.prepend(when);
  else if (T > 1) root.append(timeline);
  if (spec.full !== null) root.append(bar);
  root.append(controls);
  el.append(root);
  const events = "change:mask change:frame change:_priced".split(" ");
  events.forEach((name) => model.on(name, update));
  const unfollow = follow({ model, el }, spec.id, (t) => { stop(); setFrame(t); model.save_changes(); });
  update();
  return () => {
    unfollow();
    clearInterval(timer);
    events.forEach((name) => model.off(name, update));
  };
}

export default { render };
