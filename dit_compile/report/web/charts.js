// Pictures: cost and error at each stage, the neighbourhood of a node, the cache schedule.

/** Bars of one quantity at each stage; a stage is chosen by click or key. */
function barChart(title, stages, { value, text, log = false, chosen, choose }) {
  const shown = stages.filter((stage) => value(stage) !== null);
  if (!shown.length) return null;
  const values = shown.map(value);
  const logs = values.filter((v) => v > 0).map(Math.log10);
  const [low, high] = [Math.floor(Math.min(...logs, 0) - 0.5), Math.ceil(Math.max(...logs, -300))];
  const span = high - low || 1;
  const share = (v) => (log ? (v > 0 ? Math.max(0.02, (Math.log10(v) - low) / span) : 0) : v / (Math.max(...values) || 1));
  const [width, height, gap] = [440, 118, 5];
  const step = width / shown.length;
  const bars = shown.map((stage, i) => {
    const tall = Math.max(2, share(values[i]) * (height - 8));
    const label = `${stage.name}: ${text(values[i])}`;
    const go = () => choose(stage);
    return s(
      "g.bar",
      {
        role: "button",
        tabindex: 0,
        "aria-label": label,
        "aria-current": chosen === stage.index ? "true" : null,
        onclick: go,
        onkeydown: (event) => event.key === "Enter" && go(),
      },
      s("title", {}, label),
      s("rect.hit", { x: i * step, y: 0, width: step, height: height + 20 }),
      s("rect.fill", { x: i * step + gap / 2, y: height - tall, width: Math.max(2, step - gap), height: tall, rx: 3 }),
      s("text", { x: i * step + step / 2, y: height + 15, "text-anchor": "middle" }, stage.label),
    );
  });
  return h(
    "figure.chart",
    {},
    h("figcaption", {}, h("strong", {}, title), h("span.muted", {}, ` ${fromTo(values[0], values.at(-1), text)}`)),
    s("svg", { viewBox: `0 0 ${width} ${height + 22}`, role: "group", "aria-label": title }, s("line.axis", { x1: 0, x2: width, y1: height + 0.5, y2: height + 0.5 }), bars),
  );
}

/** What a node reads and who reads it, each a box that leads there. */
function neighbourhood(stage, node, visit) {
  const limit = 6;
  const [inputs, users] = [stage.inputsOf(node), stage.usersOf(node)];
  const [boxWidth, boxHeight, rowGap, columnGap] = [250, 34, 8, 0];
  const rows = (nodes) => {
    const more = nodes.length - limit;
    return more > 0 ? [...nodes.slice(0, limit), { more }] : nodes;
  };
  const [above, below] = [rows(inputs), rows(users)];
  const stepY = boxHeight + rowGap;
  const left = 60;
  const width = left + boxWidth + 20;
  const centre = above.length * stepY + 12;
  const height = centre + boxHeight + 12 + below.length * stepY;
  const box = (each, y, kind) => {
    if (each.more) return s("text.more", { x: left + 8, y: y + 21 }, `and ${each.more} more`);
    const name = stage.names.get(each.id) || each.name;
    const go = () => visit(each);
    return s(
      `g.box.${kind}`,
      { role: "button", tabindex: 0, "aria-label": `${kind === "input" ? "reads" : "read by"} ${name}, ${each.op}`, onclick: go, onkeydown: (event) => event.key === "Enter" && go() },
      s("title", {}, `${name} = ${each.op}\n${each.path || ""}`),
      s("rect", { x: left, y, width: boxWidth, height: boxHeight, rx: 7 }),
      s("text.name", { x: left + 10, y: y + 14 }, clip(each.op === "input" ? each.role : each.op, 34)),
      s("text.kind", { x: left + 10, y: y + 27 }, clip(name, 38)),
    );
  };
  const edge = (y1, y2, x) => s("path.edge", { d: `M ${left} ${y1} C ${x} ${y1}, ${x} ${y2}, ${left} ${y2}`, "marker-end": "url(#arrow)" });
  const middle = centre + boxHeight / 2;
  const parts = [s("defs", {}, s("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, s("path.tip", { d: "M 0 0 L 8 4 L 0 8 z" })))];
  above.forEach((each, i) => {
    const y = i * stepY;
    if (!each.more) parts.push(edge(y + boxHeight / 2, middle - 6, left - 12 - (above.length - i) * 6));
    parts.push(box(each, y, "input"));
  });
  below.forEach((each, i) => {
    const y = centre + boxHeight + 12 + i * stepY;
    if (!each.more) parts.push(edge(middle + 6, y + boxHeight / 2, left - 12 - (i + 1) * 6));
    parts.push(box(each, y, "user"));
  });
  parts.push(
    s(
      "g.box.self",
      {},
      s("rect", { x: left, y: centre, width: boxWidth, height: boxHeight, rx: 7 }),
      s("text.name", { x: left + 10, y: centre + 14 }, clip(node.op, 34)),
      s("text.kind", { x: left + 10, y: centre + 27 }, clip(stage.names.get(node.id) || node.name, 38)),
    ),
  );
  return s("svg.neighbours", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": `${count(inputs.length, "input")}, ${count(users.length, "user")}` }, parts);
}

function clip(text, most) {
  return text.length > most ? `${text.slice(0, most / 2 - 1)}…${text.slice(-most / 2)}` : text;
}

/** Sites down, steps across: filled where a site is computed. */
function scheduleMap(schedule) {
  const { steps, sites, reused } = schedule;
  const skipped = Object.fromEntries(Object.entries(reused).map(([graph, at]) => [graph, new Set(at)]));
  const label = 230;
  const cell = Math.max(6, Math.min(20, Math.floor(860 / (steps.length || 1))));
  const row = sites.length > 40 ? 9 : 14;
  const [width, height] = [label + steps.length * cell + 8, 26 + sites.length * row];
  const parts = [];
  steps.forEach((graph, step) => {
    if (step % 5 === 0 || step === steps.length - 1)
      parts.push(s("text.tick", { x: label + (step + 0.5) * cell, y: 14, "text-anchor": "middle" }, step));
  });
  sites.forEach((site, at) => {
    const y = 22 + at * row;
    if (row >= 12 || at % 2 === 0) parts.push(s("text.site", { x: label - 8, y: y + row / 2 + 3, "text-anchor": "end" }, clip(site, 36)));
    let start = 0;
    for (let step = 1; step <= steps.length; step++) {
      const computed = !skipped[steps[start]]?.has(at);
      if (step < steps.length && !skipped[steps[step]]?.has(at) === computed) continue;
      for (let each = start; each < step; each++)
        parts.push(s(`rect.${computed ? "computed" : "reused"}`, { x: label + each * cell + 0.5, y: y + 0.5, width: cell - 1, height: row - 1.5, rx: 1.5 }, s("title", {}, `${site}, step ${each}: ${computed ? "computed" : "reused"} by @${steps[each]}`)));
      start = step;
    }
  });
  const total = sites.length * steps.length;
  const saved = steps.reduce((sum, graph) => sum + (skipped[graph]?.size || 0), 0);
  const summary = !steps.length
    ? `${count(sites.length, "site")}; which of them a step computes is decided while sampling`
    : `${total - saved} of ${total} site evaluations are computed, ${saved} reused, over ${steps.length} steps`;
  return { summary, picture: s("svg.schedule", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": summary }, parts) };
}
