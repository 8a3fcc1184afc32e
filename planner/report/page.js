"use strict";
// Without this script the page can be read in full. It sorts and filters tables, reads values off charts, and lets the
// reader choose between light and dark.
(() => {
  const make = (tag, props, ...children) => {
    const e = Object.assign(document.createElement(tag), props);
    e.append(...children);
    return e;
  };
  const root = document.documentElement;

  // Light, dark, or what the system says.
  const themes = ["system", "light", "dark"];
  const theme = make("button", { type: "button", textContent: "theme: system" });
  theme.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "system") + 1) % themes.length];
    if (next === "system") delete root.dataset.theme; else root.dataset.theme = next;
    theme.textContent = "theme: " + next;
  });
  document.querySelector("nav").append(theme);

  // value is what a cell is sorted by: its number where it has one, else its text. Missing values come last either way.
  const value = (cell) => {
    if (!cell || cell.classList.contains("missing")) return null;
    const text = (cell.dataset.v ?? cell.firstChild?.textContent ?? "").trim();
    if (text === "" || text === "-") return null;
    const n = parseFloat(text.replace(/,/g, ""));
    return Number.isNaN(n) ? text.toLowerCase() : n;
  };
  const order = (a, b) => {
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  };

  for (const table of document.querySelectorAll("table[data-sort]")) {
    const body = table.tBodies[0];
    if (body.rows.length < 2) continue;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (!head.textContent) return;
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.ariaSort === "ascending";
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
        rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : down ? order(b, a) : order(a, b));
        body.append(...rows.map(([, row]) => row));
      });
    });
    if (!("filter" in table.dataset)) continue;
    const count = make("output", {});
    const field = make("input", { type: "search" });
    const show = () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((w) => text.includes(w));
        shown += !row.hidden;
      }
      count.textContent = `${shown} of ${body.rows.length} rows`;
    };
    field.addEventListener("input", show);
    show();
    table.parentElement.before(make("div", { className: "find" },
      make("label", {}, "rows with ", field), count));
  }

  // What is wider than the page scrolls, with the keyboard too.
  const reachable = () => {
    for (const box of document.querySelectorAll(".wide, .chart")) {
      if (box.scrollWidth > box.clientWidth + 1) {
        box.tabIndex = 0;
        box.role = "region";
        box.ariaLabel = box.querySelector("caption, summary")?.textContent || "wide content";
      } else {
        box.removeAttribute("tabindex");
        box.removeAttribute("role");
        box.removeAttribute("aria-label");
      }
    }
  };
  addEventListener("resize", reachable);
  document.addEventListener("toggle", reachable, true);
  reachable();

  // Values of a chart's lines at the pointer, or at a place that the arrow keys move.
  const digits = (v) => v === 0 ? "0" : Math.abs(v) >= 1e4 ? Math.round(v).toLocaleString("en") : String(+v.toPrecision(3));
  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const { names, plots } = JSON.parse(svg.dataset.chart);
    const height = svg.viewBox.baseVal.height;
    const lines = [];
    for (const path of svg.querySelectorAll("path.n")) {
      const series = [...path.classList].find((c) => /^k-s\d$/.test(c));
      if (!series) continue;
      const points = path.getAttribute("d").slice(1).split("L").map((p) => p.split(",").map(Number));
      lines.push({ name: names[+series.slice(3)] ?? "", dashed: path.hasAttribute("stroke-dasharray"),
        points: points.map(([x, y]) => [x, height - y]) });
    }
    if (lines.length === 0) continue;
    const read = make("p", { className: "read" });
    read.setAttribute("aria-live", "polite");
    svg.after(read);
    svg.tabIndex = 0;
    const hair = document.createElementNS(svg.namespaceURI, "path");
    hair.setAttribute("class", "hair");
    svg.append(hair);
    const scaled = (share, [from, to], log) => log ? from * (to / from) ** share : from + share * (to - from);
    let at = null;
    const point = (x) => {
      const [left, , right] = plots[0].box;
      at = Math.min(right, Math.max(left, x));
      const share = (at - left) / (right - left);
      const first = plots[0], xv = scaled(share, first.x, first.logx);
      const said = [first.quantile ? `${+(100 * (1 - 1 / xv)).toPrecision(4)} %` : `${digits(xv)}`];
      for (const plot of plots) {
        const [, top, , bottom] = plot.box;
        for (const line of lines) {
          let y = null;
          if (at > line.points[line.points.length - 1][0] + 1) continue;
          for (const [px, py] of line.points) {
            if (px > at + 0.01) break;
            y = py;
          }
          if (y === null || y < top - 1 || y > bottom + 1) continue;
          const v = scaled((bottom - y) / (bottom - top), plot.y, plot.logy);
          said.push(`${line.name}${line.dashed ? " (dashed)" : ""} ${digits(v)}${plot.yname.includes(",") ? plot.yname.split(",").pop() : ""}`);
        }
      }
      hair.setAttribute("d", plots.map(({ box }) => `M${at},${box[1]}V${box[3]}`).join(""));
      read.textContent = `at ${said.join(" · ")}`;
    };
    svg.addEventListener("pointermove", (e) => {
      const box = svg.getBoundingClientRect();
      point((e.clientX - box.left) * svg.viewBox.baseVal.width / box.width);
    });
    svg.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
      if (!step) return;
      e.preventDefault();
      const [left, , right] = plots[0].box;
      point((at ?? left) + step * (right - left) / 50);
    });
  }
})();
