// State, the frame around the views, keys. All state that is worth sharing is in the URL's hash.

const DEFAULTS = { view: "overview", tab: "diff", q: "", base: "", step: "", all: "", node: "", stage: "" };

function readState() {
  const found = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(Object.entries(DEFAULTS).map(([key, value]) => [key, found.get(key) ?? value]));
}

function start() {
  const report = new Report(JSON.parse(document.getElementById("report").textContent));
  document.title = shown(`${report.model} · ditc report`);
  new App(report, document.getElementById("app")).mount();
}

class App {
  constructor(report, root) {
    this.report = report;
    this.root = root;
    this.state = this.checked(readState());
    this.actions = {
      go: (change) => this.go(change),
      inspect: (node, stage) => this.go({ node: String(node), stage: String(stage) }),
      close: () => this.go({ node: "", stage: "" }),
      filter: (path) => this.go({ q: path }),
    };
  }

  /** What a stale or edited link asks for and is not there falls back to the overview. */
  checked(state) {
    const pass = /^\d+$/.test(state.view) && Number(state.view) < this.report.passes.length;
    const special = this.specials().some(({ view }) => view === state.view);
    if (!pass && !special) state.view = "overview";
    if (!["diff", "misses", "stage"].includes(state.tab)) state.tab = "diff";
    const stages = this.report.stages.length;
    if (!(/^\d+$/.test(state.stage) && Number(state.stage) < stages && /^\d+$/.test(state.node))) state.node = state.stage = "";
    if (!(/^\d+$/.test(state.base) && Number(state.base) < stages)) state.base = "";
    if (!/^\d+$/.test(state.step)) state.step = "";
    return state;
  }

  mount() {
    this.list = h("div", { id: "passes", role: "listbox", "aria-label": "Passes", tabindex: 0 });
    this.modules = h("div.modules");
    this.main = h("main", { id: "main", tabindex: -1 });
    this.inspector = h("aside.inspector", { "aria-labelledby": "inspected" });
    this.search = h("input", { type: "search", id: "filter", placeholder: "Filter: module, operator, name", "aria-label": "Filter by module, operator or name", oninput: (event) => this.go({ q: event.target.value }, { typing: true }) });
    this.unchanged = h("button.quiet", { id: "unchanged", "aria-pressed": "false", title: "Key u", onclick: () => this.toggleUnchanged() });
    this.help = this.helpDialog();
    this.root.append(
      h(
        "header.top",
        {},
        h("span.mark", {}, "ditc"),
        h("span.model", {}, this.report.model),
        h("span.muted.versions", {}, `torch ${this.report.torch}`),
        this.search,
        h("button.icon", { id: "theme", onclick: () => this.turnTheme(), "aria-label": "Dark or light", title: "Key t" }, "◐"),
        h("button.icon", { id: "help-button", onclick: () => this.help.showModal(), "aria-label": "Keys", title: "Key ?" }, "?"),
      ),
      h("nav", { "aria-label": "Passes and modules" }, this.list, this.unchanged, this.modules),
      this.main,
      this.inspector,
      this.help,
    );
    this.theme(localSetting("theme"));
    addEventListener("hashchange", () => this.fromHash());
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("mouseover", (event) => this.highlight(event.target));
    this.draw();
    document.documentElement.dataset.ready = "true";
  }

  fromHash() {
    const state = this.checked(readState());
    if (JSON.stringify(state) === JSON.stringify(this.state)) return;
    this.state = state;
    this.draw();
  }

  go(change, { typing = false } = {}) {
    const old = this.state;
    const moved = "view" in change && change.view !== old.view;
    const fresh = moved ? { step: "", base: "", node: "", stage: "" } : {};
    this.state = this.checked({ ...old, ...fresh, ...change });
    const kept = Object.entries(this.state).filter(([key, value]) => value !== DEFAULTS[key]);
    const hash = new URLSearchParams(kept).toString();
    const url = hash ? `#${hash}` : location.pathname.split("/").pop() + location.search;
    try {
      history[moved && !typing ? "pushState" : "replaceState"](null, "", url);
    } catch {
      location.hash = hash; // a page that may not write its history still keeps its filters
    }
    const only = Object.keys(change).every((key) => key === "node" || key === "stage");
    if (only) this.drawInspector();
    else this.draw();
    if (moved) this.main.scrollTop = 0;
    if ("node" in change && change.node) announce(`Inspecting ${this.report.stage(Number(this.state.stage)).names.get(Number(change.node)) || "node"}`);
  }

  draw() {
    const { report, state, actions } = this;
    this.search.value = state.q;
    this.drawList();
    const views = { overview: overviewView, schedule: scheduleView, samples: samplesView };
    replace(this.main, (views[state.view] || passView)(report, state, actions));
    this.drawModules();
    this.drawInspector();
  }

  entries() {
    const all = this.state.all === "1";
    const passes = this.report.passes
      .map((pass, position) => ({ view: String(position), pass, position }))
      .filter(({ pass, view }) => all || pass.changed || pass.failure || (pass.misses || []).length || view === this.state.view);
    const [overview, ...behind] = this.specials();
    return [overview, ...passes, ...behind];
  }

  /** The views that are of no single pass; the first stands before the passes. */
  specials() {
    return [
      { view: "overview", title: "Overview" },
      this.report.schedule && { view: "schedule", title: "Cache schedule" },
      this.report.trajectory && { view: "samples", title: "Final samples" },
    ].filter(Boolean);
  }

  drawList() {
    const had = this.list.contains(document.activeElement) || document.activeElement === this.list;
    const entries = this.entries();
    replace(this.list, entries.map((entry) => this.entry(entry)));
    this.list.setAttribute("aria-activedescendant", `entry-${this.state.view}`);
    if (had) this.list.focus();
    document.getElementById(`entry-${this.state.view}`)?.scrollIntoView({ block: "nearest" });
    const hidden = this.report.passes.length - entries.filter((entry) => entry.pass).length;
    const all = this.state.all === "1";
    this.unchanged.setAttribute("aria-pressed", String(all));
    replace(this.unchanged, all ? "Hide unchanged" : `Show ${count(hidden, "unchanged pass", "unchanged passes")}`);
    this.unchanged.hidden = !all && !hidden;
  }

  entry({ view, title, pass, position }) {
    const chosen = this.state.view === view;
    const attributes = { id: `entry-${view}`, role: "option", "aria-selected": String(chosen), onclick: () => this.go({ view }) };
    if (!pass) return h("div.entry.special", attributes, title);
    const [before, after] = [this.report.stages[this.report.before(position)].cost, this.report.stages[this.report.after(position)].cost];
    const saved = before.flops ? Math.max(0, 1 - after.flops / before.flops) : 0;
    const bar = h("span.saved", { "aria-hidden": "true" });
    bar.style.setProperty("--saved", String(saved));
    return h(
      `div.entry${pass.changed ? "" : ".idle"}${pass.failure ? ".failed" : ""}`,
      attributes,
      h("span.position", {}, position),
      h("span.name", {}, pass.name),
      badge(pass.kind),
      h("span.detail", {}, pass.failure ? "failed" : pass.changed ? nodesText(pass) : "no change"),
      h("span.hits", { title: "rewrites / near misses" }, `${(pass.rewrites || []).length} / ${(pass.misses || []).length}`),
      bar,
    );
  }

  /** The modules that the view speaks of, as a tree with equal blocks in one line. */
  drawModules() {
    const position = Number(this.state.view);
    const stage = this.report.stage(Number.isInteger(position) ? this.report.after(position) : this.report.stages.length - 1);
    const root = new Map();
    for (const graph of stage.graphs)
      for (const node of graph.nodes) {
        if (node.op === "input" || !node.path) continue;
        let level = root;
        for (const part of node.path.split(".")) {
          const key = /^\d+$/.test(part) ? "#" : part;
          if (!level.has(key)) level.set(key, { numbers: new Set(), lines: 0, inside: new Map() });
          const entry = level.get(key);
          entry.lines += 1;
          if (key === "#") entry.numbers.add(part);
          level = entry.inside;
        }
      }
    replace(this.modules, h("h2", {}, "Modules"), root.size ? this.moduleTree(root, []) : h("p.muted", {}, "none"));
  }

  moduleTree(level, above) {
    return h(
      "ul",
      {},
      [...level].map(([key, entry]) => {
        const path = [...above, key];
        const name = key === "#" ? `×${entry.numbers.size} blocks` : key;
        const filter = path.filter((part) => part !== "#").join(" ");
        const label = h("button.link", { onclick: () => this.go({ q: this.state.q === filter ? "" : filter }), "aria-pressed": String(this.state.q === filter) }, name);
        const number = h("span.muted", {}, entry.lines);
        if (!entry.inside.size) return h("li", {}, label, " ", number);
        return h("li", {}, h("details", { open: above.length < 1 }, h("summary", {}, label, " ", number), this.moduleTree(entry.inside, path)));
      }),
    );
  }

  drawInspector() {
    const open = this.state.node !== "";
    this.root.classList.toggle("inspecting", open);
    this.inspector.hidden = !open;
    for (const line of this.main.querySelectorAll(".chosen")) line.classList.remove("chosen");
    if (!open) return;
    for (const line of this.main.querySelectorAll(`[data-node="${this.state.node}"]`)) line.parentElement.classList.add("chosen");
    replace(this.inspector, inspectorView(this.report, { node: Number(this.state.node), stage: Number(this.state.stage) }, this.actions));
    this.inspector.scrollTop = 0;
  }

  toggleUnchanged() {
    this.go({ all: this.state.all === "1" ? "" : "1" });
    announce(this.state.all === "1" ? "All passes are shown" : "Unchanged passes are hidden");
  }

  turnTheme() {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
    this.theme(now === "dark" ? "light" : "dark");
  }

  theme(name) {
    if (name !== "dark" && name !== "light") return;
    document.documentElement.dataset.theme = name;
    try {
      localStorage.setItem("ditc-theme", name);
    } catch {
      // a file may have no storage; the theme then lasts as long as the page
    }
  }

  /** Marks all places of the value under the pointer. */
  highlight(target) {
    const value = target.dataset?.value;
    if (value === this.marked) return;
    for (const other of this.root.querySelectorAll(".value.same")) other.classList.remove("same");
    this.marked = value;
    if (value !== undefined) for (const other of this.root.querySelectorAll(`.value[data-value="${value}"]`)) other.classList.add("same");
  }

  key(event) {
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "Escape") {
      if (this.help.open) return;
      if (typing && this.state.q) this.go({ q: "" });
      else if (this.state.node) this.actions.close();
      if (typing) event.target.blur();
      return;
    }
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const inList = event.target === this.list;
    const action = {
      j: () => this.step(1),
      k: () => this.step(-1),
      ArrowDown: inList && (() => this.step(1)),
      ArrowUp: inList && (() => this.step(-1)),
      Home: inList && (() => this.go({ view: "overview" })),
      u: () => this.toggleUnchanged(),
      t: () => this.turnTheme(),
      "/": () => this.search.focus(),
      "?": () => this.help.showModal(),
      1: () => this.go({ tab: "diff" }),
      2: () => this.go({ tab: "misses" }),
      3: () => this.go({ tab: "stage" }),
      "[": () => this.rewrite(-1),
      "]": () => this.rewrite(1),
      n: () => this.nextLine(1),
      p: () => this.nextLine(-1),
      c: () => this.report.command && copyText(this.report.command, "Command"),
    }[event.key] || this.tabKey(event);
    if (!action) return;
    event.preventDefault();
    action();
  }

  /** Arrow keys on a tab go to its neighbours. */
  tabKey(event) {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move || event.target.getAttribute("role") !== "tab") return null;
    const tabs = ["diff", "misses", "stage"];
    return () => {
      this.go({ tab: tabs[(tabs.indexOf(this.state.tab) + move + tabs.length) % tabs.length] });
      document.getElementById(`tab-${this.state.tab}`).focus();
    };
  }

  step(by) {
    const views = this.entries().map((entry) => entry.view);
    const at = views.indexOf(this.state.view) + by;
    if (at >= 0 && at < views.length) this.go({ view: views[at] });
  }

  rewrite(by) {
    const total = (this.report.passes[Number(this.state.view)]?.rewrites || []).length;
    const at = (Number(this.state.step) || 0) + by;
    if (at >= 0 && at <= total) this.go({ step: at ? String(at) : "", base: "" });
  }

  nextLine(by) {
    const lines = [...this.main.querySelectorAll("[data-node]")];
    const at = lines.indexOf(document.activeElement);
    const next = lines[at < 0 ? (by > 0 ? 0 : lines.length - 1) : at + by];
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
  }

  helpDialog() {
    const keys = [
      ["j  k", "next, previous pass"],
      ["u", "show or hide unchanged passes"],
      ["1  2  3", "changes, near misses, whole stage"],
      ["[  ]", "rewrite by rewrite"],
      ["n  p", "next, previous line"],
      ["Enter", "inspect the line"],
      ["Esc", "close the inspector, clear the filter"],
      ["/", "filter"],
      ["t", "dark or light"],
      ["c", "copy the command that made this"],
    ];
    const dialog = h(
      "dialog",
      { "aria-labelledby": "help-title" },
      h("h2", { id: "help-title" }, "Keys"),
      h("dl.facts", {}, keys.map(([key, does]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, does)])),
      h("button", { onclick: () => dialog.close() }, "Close"),
    );
    return dialog;
  }
}

function localSetting(name) {
  try {
    return localStorage.getItem(`ditc-${name}`);
  } catch {
    return null;
  }
}

start();
