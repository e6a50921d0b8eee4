// What the views share. Python puts it in front of a view's own module: no imports are needed.

/** Element with attributes and children; names that SVG knows are created in its namespace. */
function h(tag, attributes = {}, ...children) {
  const svg = /^(svg|g|path|rect|circle|line|text|title|polyline|polygon)$/.test(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** 40551168 → "40.6 M": three digits and a prefix. */
export function format(value, unit = "") {
  const size = Math.abs(value);
  const [scale, prefix] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find((s) => size >= s[0]) ?? [1, ""];
  return [Number((value / scale).toPrecision(3)), [prefix, unit].filter(Boolean).join(" ")].join(" ").trim();
}

/** Round numbers from low to high, about `count` of them. */
export function ticks(low, high, count = 4) {
  const raw = (high - low || Math.abs(high) || 1) / count;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = unit * [1, 2, 5, 10].find((m) => m * unit >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** What `packed` in page.py made of plain data. */
function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
}

/** Views of one notebook that share an id show the same frame: no kernel is asked. */
function follow({ model, el }, id, go) {
  if (!id) return () => {};
  let home, moved = false;
  const page = () => (home ??= el.closest(".jp-Notebook"));
  const say = (t) => document.dispatchEvent(new CustomEvent("nas-frame", { detail: { id, page: page(), t } }));
  const tell = () => {
    moved = true;
    say(model.get("frame"));
  };
  const hear = ({ detail }) => {
    if (detail.id !== id || detail.page !== page()) return;
    if (detail.t === undefined) moved && tell();
    else if (detail.t !== model.get("frame")) go(detail.t);
  };
  // A notebook draws what is seen: a view that comes later asks where the others are, as soon as
  // it has a place on the page.
  const placed = new ResizeObserver(() => {
    placed.disconnect();
    say();
  });
  placed.observe(el);
  model.on("change:frame", tell);
  document.addEventListener("nas-frame", hear);
  return () => {
    placed.disconnect();
    model.off("change:frame", tell);
    document.removeEventListener("nas-frame", hear);
  };
}

