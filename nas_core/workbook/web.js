// Search, light and dark, copying of code. No imports; nothing is asked of another host.
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const stored = () => {
  try {
    return localStorage.getItem("book-theme");
  } catch {
    return null; // a browser that keeps nothing
  }
};
root.setAttribute("theme", stored() ?? (dark.matches ? "dark" : "light"));

document.addEventListener("DOMContentLoaded", () => {
  const [find, found, theme] = ["find", "found", "theme"].map((id) => document.getElementById(id));
  theme.addEventListener("click", () => {
    const next = root.getAttribute("theme") === "dark" ? "light" : "dark";
    root.setAttribute("theme", next);
    try {
      localStorage.setItem("book-theme", next);
    } catch {
      // for this page only
    }
  });

  // The texts of the book are loaded when somebody starts to search.
  let texts = null;
  const load = () =>
    (texts ??= new Promise((ready) => {
      const script = document.createElement("script");
      script.src = "search.js";
      script.onload = () => ready(window.BOOK_TEXTS);
      document.head.append(script);
    }));
  const marked = (text, at, length) => {
    const from = Math.max(0, at - 50);
    const p = document.createElement("small");
    const b = document.createElement("mark");
    b.textContent = text.slice(at, at + length);
    p.append((from ? "…" : "") + text.slice(from, at), b, text.slice(at + length, at + 90) + "…");
    return p;
  };
  async function search() {
    const words = find.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const all = words.length ? await load() : [];
    const hits = all
      .map(([url, chapter, title, text]) => {
        const low = `${title} ${text}`.toLowerCase();
        const score = words.every((w) => low.includes(w)) && words.filter((w) => title.toLowerCase().includes(w)).length + 1;
        return { url, chapter, title, text, score };
      })
      .filter((hit) => hit.score)
      .sort((a, b) => b.score - a.score);
    const items = hits.slice(0, 12).map(({ url, chapter, title, text }) => {
      const [li, a] = [document.createElement("li"), document.createElement("a")];
      a.href = url;
      a.textContent = `${chapter}${title ? " · " + title : ""}`;
      const at = text.toLowerCase().indexOf(words[0]);
      li.append(a, ...(at < 0 ? [] : [marked(text, at, words[0].length)]));
      return li;
    });
    if (words.length && !items.length) {
      items.push(Object.assign(document.createElement("li"), { textContent: "Nothing found" }));
    }
    found.replaceChildren(...items);
    found.hidden = !words.length;
  }
  find.addEventListener("focus", load, { once: true });
  find.addEventListener("input", search);
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) {
      event.preventDefault();
      find.focus();
    } else if (event.key === "Escape" && event.target === find) {
      find.value = "";
      search();
    }
  });

  for (const code of document.querySelectorAll(".code")) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "copy", className: "copy" });
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.querySelector("pre").textContent);
      button.textContent = "copied";
      setTimeout(() => (button.textContent = "copy"), 1500);
    });
    code.append(button);
  }
  // A printed page shows what is folded.
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
});
