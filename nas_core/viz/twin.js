// Shows a view from a text/html output where its widget cannot be: in a trusted notebook without
// kernel JupyterLab never reads the saved state of widgets (jupyter-widgets/ipywidgets#3773).
// The body of a function of `root`, the output's element, and `page` = {esm, css, traits}. While
// the row above holds the living view, style rules hide this one.
const row = ".jp-OutputArea-child";
const rules = document.createElement("style");
rules.textContent = `${row}:has(.nas-view) + ${row}:has(.nas-twin),
  ${row}:not(:has(.nas-view)):has(+ ${row} .nas-started) { display: none }`;
root.append(rules);
const state = page.traits;
let stop = null;

async function start() {
  const { default: view } = await import(URL.createObjectURL(new Blob([page.esm], { type: "text/javascript" })));
  const handlers = {};
  const model = {
    get: (name) => state[name],
    set(name, value) {
      const news = Object.entries(typeof name === "string" ? { [name]: value } : name).filter(([k, v]) => state[k] !== v);
      Object.assign(state, Object.fromEntries(news));
      for (const [k] of news) handlers[`change:${k}`]?.forEach((f) => f());
    },
    save_changes() {},
    on: (name, f) => (handlers[name] ??= new Set()).add(f),
    off: (name, f) => handlers[name]?.delete(f),
  };
  const [style, el] = [document.createElement("style"), document.createElement("div")];
  style.textContent = page.css;
  const clean = await view.render({ model, el });
  root.append(style, el);
  root.classList.add("nas-started"); // from now on the empty row above is hidden
  return () => {
    clean();
    [style, el].forEach((node) => node.remove());
    root.classList.remove("nas-started");
  };
}

const hidden = () => getComputedStyle(root.closest(row) ?? root).display === "none";
function giveWay() { // the living view has come
  if (!stop || !hidden()) return;
  stop.then((end) => end());
  stop = null;
}

let visible = false;
new IntersectionObserver((entries) => {
  visible = entries.at(-1).isIntersecting;
  if (visible && !stop) {
    setTimeout(() => visible && !stop && root.closest(".jp-OutputArea") && (stop = start()), 300);
  } else giveWay();
}).observe(root);
new ResizeObserver(giveWay).observe(root); // out of sight nothing intersects, but it loses its size
