// Shows a view from a text/html output where its widget cannot be: in a trusted notebook without
// kernel JupyterLab never reads the saved state of widgets (jupyter-widgets/ipywidgets#3773).
// While the row above holds the living view, style rules hide this one.
((root, packed) => {
  let stop = null;
  let state = null;

  async function start() {
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const json = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const { esm, css, traits } = await new Response(json).json();
    state ??= traits;
    const { default: view } = await import(URL.createObjectURL(new Blob([esm], { type: "text/javascript" })));
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
    style.textContent = css;
    const clean = await view.render({ model, el });
    root.append(style, el);
    root.classList.add("nas-started"); // from now on the empty row above is hidden
    return () => [style, el].forEach((node) => node.remove(), clean());
  }

  const hidden = () => getComputedStyle(root.closest(".jp-OutputArea-child") ?? root).display === "none";
  let visible = false;
  new IntersectionObserver((entries) => {
    visible = entries.at(-1).isIntersecting;
    if (visible && !stop) {
      setTimeout(() => visible && !stop && root.closest(".jp-OutputArea") && (stop = start()), 300);
    } else if (stop && hidden()) {
      stop.then((end) => end());
      stop = null;
      root.classList.remove("nas-started");
    }
  }).observe(root);
})(document.currentScript.parentElement, "PACKED");
