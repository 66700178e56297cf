// Everything about one node: where it comes from, what it stood for in every earlier stage, what it
// reads and who reads it.

function inspectorView(report, state, actions) {
  const stage = report.stage(state.stage);
  const node = stage.owner.get(state.node);
  if (!node) return h("p.muted", {}, "This node is not in that stage.");
  const line = stage.line(node);
  return [
    h(
      "header",
      {},
      h("h2", { id: "inspected" }, node.op === "input" ? `${node.role} input` : node.op),
      h("button.icon", { onclick: actions.close, "aria-label": "Close the inspector", title: "Close (Esc)" }, "✕"),
    ),
    h("p.code.full", {}, codeLine(stage, node, (value) => actions.inspect(value, stage.index))),
    h(
      "div.buttons",
      {},
      h("button", { onclick: () => copyText(line, "IR") }, "Copy as IR"),
      node.op !== "input" && h("button", { onclick: () => copyText(stage.python(node), "Python") }, "Copy as Python"),
    ),
    facts([
      ["module", node.path && h("button.link", { onclick: () => actions.filter(node.path), title: "Show only this module" }, node.path)],
      ["source", node.source && h("button.link", { onclick: () => copyText(node.source, "Source line"), title: "Copy" }, node.source)],
      ["graph", `@${node.graph}, ${report.stageName(stage.index)}`],
      ["value", node.type],
      ["work", node.flops ? flopText(node.flops) : null],
      ["moves", node.bytes ? byteText(node.bytes) : null],
    ]),
    h("h3", {}, "Stands for"),
    ancestryList(report, state, actions),
    h("h3", {}, "Around it"),
    neighbourhood(stage, node, (each) => actions.inspect(each.id, stage.index)),
  ];
}

function facts(rows) {
  return h(
    "dl.facts",
    {},
    rows.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
  );
}

/** Stage by stage, back to the capture; stages that only carried the node on are left out. */
function ancestryList(report, state, actions) {
  const items = [];
  let last = String([state.node]);
  for (const { stage: index, values } of report.ancestry(state.node, state.stage)) {
    const stage = report.stage(index);
    const same = String(values) === last && values.every((value) => sameForm(report, value, index));
    last = String(values);
    if (same) continue;
    const nodes = owners(stage, values);
    const maker = report.passes[report.maker(index + 1)];
    items.push(
      h(
        "li",
        {},
        h("div.muted", {}, nodes.length ? `before ${maker.name}` : `new with ${maker.name}`),
        nodes.slice(0, 24).map((node) => h("p.code", {}, codeLine(stage, node, (value) => actions.inspect(value, index)))),
        nodes.length > 24 && h("p.muted", {}, `and ${nodes.length - 24} more`),
      ),
    );
  }
  if (items.length) return h("ol.ancestry", {}, items);
  return h("p.muted", {}, state.stage ? "Itself: it is in every stage since the capture, unchanged." : "It was captured so.");
}

function sameForm(report, value, index) {
  return report.stage(index).owner.get(value) === report.stage(index + 1).owner.get(value);
}

/** A line of IR; values in it can be chosen. */
function codeLine(stage, node, choose) {
  return stage.pieces(node).map((piece) =>
    piece.kind === "value"
      ? h("span.value", { "data-value": piece.value, onclick: (event) => (event.stopPropagation(), choose(piece.value)) }, piece.text)
      : h(piece.kind ? `span.${piece.kind}` : "span", {}, piece.text),
  );
}
