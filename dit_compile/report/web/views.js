// The main column: overview, one pass, the cache schedule.

const KINDS = {
  exact: "the same mathematics, checked against float64",
  lower: "exact, but other operators",
  annotate: "writes notes, changes nothing",
  APPROX: "changes results on purpose",
};

function badge(kind) {
  return h(`span.badge.${kind}`, { title: KINDS[kind] || kind }, kind);
}

function overviewView(report, state, actions) {
  const stages = report.stages.map((stage, index) => ({
    index,
    cost: stage.cost,
    errors: stage.errors,
    name: report.stageName(index),
    label: index ? `#${report.maker(index)}` : "in",
  }));
  const options = { chosen: null, choose: (stage) => stage.index && actions.go({ view: String(report.maker(stage.index)) }) };
  const first = report.stages[0].cost;
  const last = report.stages.at(-1).cost;
  return [
    h("h1", {}, report.model),
    h("p.muted.wide", {}, report.pipeline),
    h(
      "div.cards",
      {},
      card("nodes", `${report.passes[0]?.nodes_before ?? "-"} → ${report.passes.at(-1)?.nodes_after ?? "-"}`),
      card("work of a step", fromTo(first.flops, last.flops, flopText), ratio(first.flops, last.flops)),
      card("moved in a step", fromTo(first.bytes_moved, last.bytes_moved, byteText), ratio(first.bytes_moved, last.bytes_moved)),
      report.trajectory?.passes.length > 0 && samplesCard(report.trajectory.passes.at(-1)),
      card("compile time", timeText(report.seconds.pipeline), checksText(report.seconds.verify, report.seconds.numerics)),
    ),
    h(
      "div.charts",
      {},
      barChart("Work of a step", stages, { ...options, value: (stage) => stage.cost.flops, text: flopText }),
      barChart("Moved in a step", stages, { ...options, value: (stage) => stage.cost.bytes_moved, text: byteText }),
      barChart("Distance from float64", stages, { ...options, log: true, value: (stage) => worst(stage.errors), text: (v) => v.toExponential(1) }),
    ),
    h("h2", {}, "Passes"),
    passTable(report, actions),
    report.command && [h("h2", {}, "Made by"), h("button.command", { onclick: () => copyText(report.command, "Command"), title: "Copy" }, report.command)],
  ];
}

function worst(errors) {
  const values = Object.values(errors || {}).flat().filter((value) => value !== null);
  return values.length ? Math.max(...values) : null;
}

function ratio(before, after) {
  return after > 0 && before !== after ? `${(before / after).toFixed(2)} times ${after < before ? "less" : "as much"}` : "";
}

function checksText(verify, numerics) {
  const parts = [verify && `verify ${timeText(verify)}`, numerics && `numerics ${timeText(numerics)}`];
  return parts.filter(Boolean).join(", ");
}

function card(title, value, note = "") {
  return h("div.card", {}, h("div.muted", {}, title), h("div.big", {}, value), note && h("div.note", {}, note));
}

function passTable(report, actions) {
  const head = ["#", "pass", "kind", "#nodes", "#rewrites", "#near misses", "#work", "#moved", "#time", "#verify", "#error"];
  const rows = report.passes.map((pass, position) => {
    const [before, after] = [report.stages[report.before(position)].cost, report.stages[report.after(position)].cost];
    return h(
      `tr${pass.changed ? "" : ".idle"}`,
      {},
      h("td.number", {}, position),
      h("th", { scope: "row" }, h("button.link", { onclick: () => actions.go({ view: String(position) }) }, pass.name)),
      h("td", {}, badge(pass.kind)),
      h("td.number", {}, nodesText(pass)),
      h("td.number", {}, (pass.rewrites || []).length || "·"),
      h("td.number", {}, (pass.misses || []).length || "·"),
      h("td.number", {}, delta(before.flops, after.flops, flopText)),
      h("td.number", {}, delta(before.bytes_moved, after.bytes_moved, byteText)),
      h("td.number", {}, timeText(pass.seconds)),
      h("td.number", {}, pass.verify_seconds ? timeText(pass.verify_seconds) : "·"),
      h("td.number", {}, errorText(report, position) || "·"),
    );
  });
  return h("div.scroll", {}, h("table.passes", {}, headRow(head), h("tbody", {}, rows)));
}

function delta(before, after, text) {
  return before === after ? "·" : text(after - before, true);
}

function nodesText(pass) {
  return pass.changed ? `${pass.nodes_before} → ${pass.nodes_after}` : `${pass.nodes_before}`;
}

function errorText(report, position) {
  const [pass, share] = [report.passes[position], report.share(position)];
  if (pass.kind === "APPROX" && pass.changed) return share ? `PSNR ${decibelText(share)}` : "by schedule";
  return pass.error_growth == null ? "" : `${pass.error_growth.toFixed(1)}× noise`;
}

/** One pass: what it is, what it cost, its diff, near misses and the whole stage. */
function passView(report, state, actions) {
  const position = Number(state.view);
  const pass = report.passes[position];
  const [before, after] = [report.stages[report.before(position)], report.stages[report.after(position)]];
  const tabs = [
    ["diff", "Changes", (pass.rewrites || []).length],
    ["misses", "Near misses", (pass.misses || []).length],
    ["stage", "Whole stage", null],
  ];
  return [
    h("h1", {}, h("span.muted", {}, `#${position} `), pass.name, " ", badge(pass.kind)),
    h("p", {}, marked(pass.summary)),
    pass.failure && h("pre.alert", { role: "alert" }, pass.failure),
    pass.skipped && h("p.alert", {}, `Skipped: ${pass.skipped}`),
    (pass.notes || []).length > 0 && h("p.notes", {}, pass.notes.join("; ")),
    h(
      "div.cards",
      {},
      card("nodes", nodesText(pass), pass.changed ? "" : "no change"),
      card("work of a step", delta(before.cost.flops, after.cost.flops, flopText)),
      card("moved in a step", delta(before.cost.bytes_moved, after.cost.bytes_moved, byteText)),
      card("time", timeText(pass.seconds), checksText(pass.verify_seconds, pass.numerics_seconds)),
      card("error", errorText(report, position) || "not measured", errorNote(before, after)),
    ),
    Object.keys(pass.options).length > 0 && h("p.muted", {}, "Options: ", h("code", {}, Object.entries(pass.options).map(([key, value]) => `${key}=${typeof value === "object" ? JSON.stringify(value) : value}`).join("  "))),
    h(
      "div.tabs",
      { role: "tablist", "aria-label": "Views of this pass" },
      tabs.map(([key, title, number], i) =>
        h(
          "button",
          {
            role: "tab",
            id: `tab-${key}`,
            "aria-selected": String(state.tab === key),
            "aria-controls": "panel",
            tabindex: state.tab === key ? 0 : -1,
            title: `Key ${i + 1}`,
            onclick: () => actions.go({ tab: key }),
          },
          title,
          number !== null && h("span.count", {}, number),
        ),
      ),
    ),
    h("div", { id: "panel", role: "tabpanel", "aria-labelledby": `tab-${state.tab}` }, panel(report, state, actions, position)),
  ];
}

function errorNote(before, after) {
  const [old, now] = [worst(before.errors), worst(after.errors)];
  return now === null ? "" : `${old === null ? "" : `${old.toExponential(1)} → `}${now.toExponential(1)} from float64`;
}

function panel(report, state, actions, position) {
  if (state.tab === "misses") return missesView(report.passes[position], state);
  if (state.tab === "stage") return stageView(report, state, actions, report.after(position));
  return diffView(report, state, actions, position);
}

function matches(state, ...texts) {
  const wanted = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const all = texts.join(" ").toLowerCase();
  return wanted.every((word) => all.includes(word));
}

function diffView(report, state, actions, position) {
  const to = report.after(position);
  const plain = report.before(position);
  const from = state.base === "" ? plain : Math.min(Number(state.base), to);
  const lineOf = { before: (node) => report.stage(from).line(node), after: (node) => report.stage(to).line(node) };
  let hunks = from === plain ? passHunks(report, position) : stageHunks(report, from, to);
  const rewrites = (report.passes[position].rewrites || []).length;
  if (state.step) hunks = hunks.filter((each) => each.rewrites.includes(Number(state.step) - 1));
  const shown = hunks.filter((each) => matches(state, each.path, each.graph, ...each.removed.map(lineOf.before), ...each.added.map(lineOf.after)));
  const folded = foldHunks(shown, lineOf);
  const recorded = state.step && !hunks.length ? report.passes[position].rewrites?.[Number(state.step) - 1] : null;
  return [
    h(
      "div.toolbar",
      {},
      h("span.muted", { id: "summary" }, hunks.length ? `${count(shown.length, "change")}, ${folded.length} of them different` : recorded ? "As the pass recorded it." : "No change."),
      h(
        "label",
        {},
        "compared with ",
        h(
          "select",
          { id: "base", onchange: (event) => actions.go({ base: event.target.value, step: "" }) },
          report.stages.slice(0, to + 1).map((_, index) =>
            h("option", { value: index === plain ? "" : index, selected: index === from }, index === plain ? `the stage before (${report.stageName(index)})` : report.stageName(index)),
          ),
        ),
      ),
      from === plain && rewrites > 0 && stepper(state, rewrites, actions),
    ),
    recorded && recordedView(recorded),
    folded.map((each) => hunkView(report, from, to, each, actions)),
    hunks.length > 0 && !folded.length && h("p.muted", {}, "Nothing here matches the filter."),
  ];
}

/** A rewrite whose nodes are in no stage, such as one of a graph that was copied later. */
function recordedView(rewrite) {
  const side = (lines, sign, kind) => lines.map((line) => h(`div.line.${kind}`, { role: "listitem" }, h("span.sign", { "aria-hidden": "true" }, sign), h("span.hidden", {}, SIGNS[sign]), h("div.code", {}, line)));
  return h(
    "section.hunk",
    { "aria-label": `Change in ${rewrite.path || "the top of the model"}` },
    h("header", {}, h("h3", {}, rewrite.path || "(top of the model)")),
    h(
      "div.split",
      {},
      h("div.side.before", { role: "list", "aria-label": "before" }, side(rewrite.removed, "−", "del")),
      h("div.side.after", { role: "list", "aria-label": "after" }, side(rewrite.added, "+", "add")),
    ),
  );
}

/** Walks through the rewrites of a pass one by one. */
function stepper(state, total, actions) {
  const at = Number(state.step) || 0;
  const go = (to) => actions.go({ step: to ? String(to) : "" });
  return h(
    "span.stepper",
    { role: "group", "aria-label": "Rewrite by rewrite" },
    h("button.icon", { disabled: at <= 0, onclick: () => go(at - 1), "aria-label": "Rewrite before", title: "Key [" }, "‹"),
    h("span", {}, at ? `rewrite ${at} of ${total}` : `all ${total} rewrites`),
    h("button.icon", { disabled: at >= total, onclick: () => go(at + 1), "aria-label": "Next rewrite", title: "Key ]" }, "›"),
  );
}

function hunkView(report, from, to, each, actions) {
  const [before, after] = [report.stage(from), report.stage(to)];
  const paths = each.same.map((one) => one.path);
  const places = [...new Set(paths)];
  const ir = () => [...each.removed.map((n) => `-  ${before.line(n)}`), ...each.added.map((n) => `+  ${after.line(n)}`)].join("\n");
  const side = (nodes, stage, sign) => nodes.map((node) => diffLine(stage, node, sign, actions));
  return h(
    "section.hunk",
    { "aria-label": `Change in ${rangeOf(places) || "the top of the model"}` },
    h(
      "header",
      {},
      h("h3", {}, h("button.link", { onclick: () => actions.filter(each.path), title: "Show only this module" }, rangeOf(places) || "(top of the model)")),
      each.title && h("span.muted", {}, each.title),
      each.same.length > 1 && h("span.times", {}, `×${each.same.length} identical, shown once`),
      h("button.quiet", { onclick: () => copyText(ir(), "Diff") }, "Copy"),
    ),
    h(
      "div.split",
      {},
      h("div.side.before", { role: "list", "aria-label": "before" }, side(each.removed, before, "−"), !each.removed.length && h("p.nothing", {}, "nothing")),
      h(
        "div.side.after",
        { role: "list", "aria-label": "after" },
        side(each.added, after, "+"),
        each.kept.map((node) => diffLine(after, node, "=", actions)),
        !each.added.length && !each.kept.length && h("p.nothing", {}, each.copied ? "copied" : "gone"),
      ),
    ),
    each.copied && each.copied.length > 0 && lazyDetails(`${count(each.copied.length, "node")} moved here`, () => side(each.copied, after, "→")),
    places.length > 1 && lazyDetails(`all ${places.length} places`, () => h("ul.places", {}, each.same.map((one) => placeItem(one, before, after, actions)))),
  );
}

function placeItem(one, before, after, actions) {
  const node = one.added[0] || one.kept[0] || one.removed[0];
  const stage = one.added.length || one.kept.length ? after : before;
  return h("li", {}, h("button.link", { onclick: () => node && actions.inspect(node.id, stage.index) }, one.path || "(top)"), h("span.muted", {}, node ? ` ${stage.names.get(node.id) || ""}` : ""));
}

/** Details whose inside is made when they are first opened. */
function lazyDetails(title, make) {
  const inside = h("div");
  const element = h("details", {}, h("summary", {}, title), inside);
  element.addEventListener("toggle", () => element.open && !inside.firstChild && append(inside, [make()]));
  return element;
}

const SIGNS = { "−": "removed", "+": "added", "=": "kept, stands for what went", "→": "moved here" };

function diffLine(stage, node, sign, actions) {
  const choose = () => actions.inspect(node.id, stage.index);
  const kind = { "−": "del", "+": "add", "=": "keep", "→": "moved" }[sign];
  return h(
    `div.line.${kind}`,
    { role: "listitem" },
    h("span.sign", { "aria-hidden": "true" }, sign),
    h("span.hidden", {}, SIGNS[sign]),
    h(
      "div.code",
      { role: "button", tabindex: 0, "data-node": node.id, onclick: choose, onkeydown: (event) => event.key === "Enter" && choose() },
      codeLine(stage, node, (value) => actions.inspect(value, stage.index)),
    ),
  );
}

function missesView(pass, state) {
  const misses = (pass.misses || []).filter((miss) => matches(state, miss.path, miss.node, miss.reason, miss.culprit || ""));
  if (!misses.length) return h("p.muted", {}, (pass.misses || []).length ? "Nothing here matches the filter." : "It fired wherever it nearly matched.");
  const groups = new Map();
  for (const miss of misses) groups.set(miss.reason, [...(groups.get(miss.reason) || []), miss]);
  return [...groups].map(([reason, found]) =>
    h(
      "section.hunk",
      {},
      h("header", {}, h("h3", {}, reason), found.length > 1 && h("span.times", {}, `×${found.length}`)),
      h(
        "div.scroll",
        {},
        h(
          "table",
          {},
          headRow(["module", "node", "because of", "source"]),
          h("tbody", {}, found.map((miss) => h("tr", {}, h("td", {}, miss.path || "(top)"), h("td.mono", {}, `%${miss.node}`), h("td.mono", {}, miss.culprit || "-"), h("td.mono", {}, miss.source || "")))),
        ),
      ),
    ),
  );
}

/** All lines of a stage, folded by graph and module. */
function stageView(report, state, actions, index) {
  const stage = report.stage(index);
  const graphs = stage.graphs.map((graph) => {
    const nodes = graph.nodes.filter((node) => isLine(node) && matches(state, node.path || "", stage.line(node)));
    const groups = [];
    for (const node of nodes) {
      const path = node.path || "";
      if (groups.at(-1)?.path !== path) groups.push({ path, nodes: [] });
      groups.at(-1).nodes.push(node);
    }
    return h(
      "details.graph",
      { open: graph.name === "full" || Boolean(state.q) },
      h("summary", {}, h("strong", {}, `@${graph.name}`), h("span.muted", {}, ` ${count(nodes.length, "line")}${graph.ahead ? ", computed ahead" : ""}`)),
      groups.map(({ path, nodes: lines }) =>
        h("div.module", {}, h("div.path.muted", {}, path || "(top)"), h("div", { role: "list" }, lines.map((node) => diffLine(stage, node, " ", actions)))),
      ),
    );
  });
  return [
    h(
      "div.toolbar",
      {},
      h("span.muted", {}, report.stageName(index)),
      h("button.quiet", { onclick: () => copyText(stage.text(), "IR of the stage") }, "Copy as IR"),
      report.command && h("button.quiet", { onclick: () => copyText(report.command, "Command") }, "Copy the command"),
    ),
    graphs,
  ];
}

function scheduleView(report) {
  const schedule = report.schedule;
  const { summary, picture } = scheduleMap(schedule);
  const last = report.stages.at(-1).cost;
  const graphs = Object.keys(schedule.reused);
  return [
    h("h1", {}, "Cache schedule"),
    h("p", {}, h("code", {}, schedule.policy), ` · ${summary}.`),
    schedule.steps.length > 0 && h("p.legend", {}, h("span.key.computed", {}), " computed ", h("span.key.reused", {}), " reused from state"),
    schedule.steps.length > 0 && h("div.scroll.map", { tabindex: 0, role: "region", "aria-label": "Step by site" }, picture),
    h("h2", {}, "Graphs"),
    h(
      "table",
      {},
      headRow(["graph", "#steps", "#sites reused", "#work of a run", "#moved"]),
      h(
        "tbody",
        {},
        graphs.map((name) =>
          h(
            "tr",
            {},
            h("th.mono", { scope: "row" }, `@${name}`),
            h("td.number", {}, schedule.steps.length ? schedule.steps.filter((each) => each === name).length : "as measured"),
            h("td.number", {}, `${(schedule.reused[name] || []).length} of ${schedule.sites.length}`),
            h("td.number", {}, flopText(last.graphs[name]?.flops || 0)),
            h("td.number", {}, byteText(last.graphs[name]?.bytes_moved || 0)),
          ),
        ),
      ),
    ),
  ];
}
