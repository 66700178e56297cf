// What changed between two stages: hunks of lines, with those that are the same in every block
// folded into one.

/** A hunk: lines before, lines after, lines that were kept and took over; where it is. */
function hunk(graph, path, removed, added, extra = {}) {
  return { graph, path, removed, added, kept: [], rewrites: [], ...extra };
}

/** All hunks of one pass, in the order of its rewrites. */
function passHunks(report, position) {
  const before = report.stage(report.before(position));
  const after = report.stage(report.after(position));
  if (before === after) return [];
  const known = new Set(before.graphs.map((graph) => graph.name));
  const pass = report.passes[position];
  const hunks = [];
  const standsFor = new Map();
  for (const move of pass.moves || []) {
    for (const old of move.before) standsFor.set(old, new Set(move.after));
    const removed = owners(before, move.before);
    const added = owners(after, move.after.filter((value) => !before.owner.has(value))).filter(
      (node) => known.has(node.graph) && node.copy_of === undefined,
    );
    const kept = owners(after, move.after.filter((value) => before.owner.has(value)));
    const shown = [removed.filter((node) => isLine(node) && node.role !== "derived"), added.filter(isLine)];
    if (!shown[0].length && !shown[1].length) continue;
    const rewrite = (pass.rewrites || [])[(move.rewrites || [])[0]];
    const where = shown[0][0] || shown[1][0];
    const extra = { kept: removed.length ? kept : [], rewrites: move.rewrites || [] };
    hunks.push(hunk(where.graph, rewrite?.path ?? where.path, shown[0], shown[1], extra));
  }
  hunks.push(...changedHunks(before, after, standsFor));
  for (const graph of after.graphs)
    if (!known.has(graph.name) || graph.ahead) hunks.push(...newGraph(before, after, graph));
  return hunks;
}

/** The hunks between any two stages, by module. */
function stageHunks(report, from, to) {
  const before = report.stage(from);
  const after = report.stage(to);
  const groups = new Map();
  const group = (graph, path) => {
    const key = `${graph}\n${path}`;
    if (!groups.has(key)) groups.set(key, hunk(graph, path, [], []));
    return groups.get(key);
  };
  for (const graph of before.graphs)
    for (const node of graph.nodes)
      if (!after.owner.has(node.id) && isLine(node)) group(graph.name, node.path || "").removed.push(node);
  for (const graph of after.graphs)
    for (const node of graph.nodes)
      if (!before.owner.has(node.id) && isLine(node)) group(graph.name, node.path || "").added.push(node);
  return [...groups.values()];
}

/** Nodes that were kept but read something that is not what stands for what they read. */
function changedHunks(before, after, standsFor) {
  const hunks = [];
  for (const graph of after.graphs)
    for (const node of graph.nodes) {
      const old = before.owner.get(node.id);
      if (!old || old === node || !isLine(node) || alike(old, node, standsFor)) continue;
      hunks.push(hunk(graph.name, node.path || "", [old], [node], { changed: true }));
    }
  return hunks;
}

function alike(old, node, standsFor) {
  const same = (a, b) => {
    if (Array.isArray(a) || Array.isArray(b))
      return Array.isArray(a) && Array.isArray(b) && a.length === b.length && a.every((item, i) => same(item, b[i]));
    if (a === b) return true;
    const [left, right] = [reference(a), reference(b)];
    return left !== null && right !== null && Boolean(standsFor.get(left)?.has(right));
  };
  const kwargs = Object.entries(old.kwargs || {});
  return (
    old.type === node.type &&
    same(old.args || [], node.args || []) &&
    kwargs.length === Object.keys(node.kwargs || {}).length &&
    kwargs.every(([key, arg]) => key in (node.kwargs || {}) && same(arg, node.kwargs[key]))
  );
}

/** A graph that came with a pass: what it took over from another one, and what it left behind. */
function newGraph(before, after, graph) {
  const fresh = graph.nodes.filter((node) => !before.owner.has(node.id));
  if (!fresh.length) return [];
  const added = fresh.filter((node) => node.op !== "input" || node.role === "state");
  const copies = new Set(fresh.map((node) => node.copy_of).filter((value) => value !== undefined));
  const own = added.filter((node) => node.copy_of === undefined);
  if (graph.ahead) {
    const moved = added.filter((node) => node.copy_of !== undefined && isLine(node));
    return own.filter(isLine).length || moved.length
      ? [hunk(graph.name, "", [], own.filter(isLine), { copied: moved, title: `computed ahead, in @${graph.name}` })]
      : [];
  }
  const base = after.graphs.find((other) => other.nodes.some((node) => copies.has(node.id)));
  const left = (base ? base.nodes : []).filter((node) => !copies.has(node.id) && node.op !== "input");
  const groups = new Map();
  for (const [nodes, side] of [[left, "removed"], [own, "added"]])
    for (const node of nodes) {
      const path = node.path || "";
      if (!groups.has(path))
        groups.set(path, hunk(graph.name, path, [], [], { title: `@${graph.name}, compared with @${base?.name}` }));
      groups.get(path)[side].push(node);
    }
  return [...groups.values()];
}

/** Hunks that differ only in what values are called and in the number of their block, as one. */
function foldHunks(hunks, lineOf) {
  const groups = new Map();
  for (const each of hunks) {
    const key = shapeOf(each, lineOf);
    if (groups.has(key)) groups.get(key).same.push(each);
    else groups.set(key, { ...each, same: [each] });
  }
  return [...groups.values()];
}

function shapeOf(each, lineOf) {
  const names = new Map();
  const unnumbered = (text) => text.replace(/\d+/g, "#");
  const rename = (name) => {
    if (!names.has(name)) names.set(name, `%${names.size}`);
    return names.get(name);
  };
  const lines = [...each.removed.map((n) => `-${lineOf.before(n)}`), ...each.added.map((n) => `+${lineOf.after(n)}`)];
  const shown = lines.map((line) => line.replace(/@[^\s,\])]+/g, unnumbered).replace(/%[\w.]+/g, rename));
  const notes = [each.kept.length, each.changed || "", each.title || "", (each.copied || []).length];
  return [each.graph, unnumbered(each.path), ...notes, ...shown].join("\n");
}

/** The paths of folded hunks with the numbers that differ as a range: blocks.{0-11}.attn. */
function rangeOf(paths) {
  const parts = paths.map((path) => path.split("."));
  return parts[0]
    .map((part, i) => {
      const seen = [...new Set(parts.map((each) => each[i]))];
      if (seen.length === 1) return part;
      const numbers = seen.map(Number).sort((a, b) => a - b);
      const whole = numbers.every((n, at) => Number.isInteger(n) && (!at || n === numbers[at - 1] + 1));
      return whole ? `{${numbers[0]}–${numbers.at(-1)}}` : `{${seen.length > 4 ? `${seen.length} of them` : seen.join(",")}}`;
    })
    .join(".");
}

function owners(stage, values) {
  return [...new Set(values.map((value) => stage.owner.get(value)).filter(Boolean))];
}

/** Whether a node is shown as a line: weights are shown where they are read. */
function isLine(node) {
  return node.op !== "input" || node.role === "state" || node.role === "derived";
}
