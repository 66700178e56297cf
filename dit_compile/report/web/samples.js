// What the passes cost of the samples that whole generations end with: by pass, and by block.

function samplesView(report, state, actions) {
  const { passes, blocks, approximation, generations, steps, seed } = report.trajectory;
  const cached = String(report.passes.findLastIndex((pass) => pass.kind === "APPROX"));
  const shown = (shares) => shares.filter((share) => matches(state, share.name));
  return [
    h("h1", {}, "Final samples"),
    h("p.muted", {}, `${count(generations, "generation")} of ${count(steps, "step")}, seeds from ${seed}, against the uncompiled model.`),
    !passes.length && h("p", {}, "No pass changed the model."),
    sharePanel("With all passes up to each one", "pass", shown(passes), (share) => actions.go({ view: String(share.position) })),
    sharePanel(["With ", h("code", {}, approximation), " in one block alone"], "block", shown(blocks), (share) => actions.go({ view: cached, q: share.name })),
  ];
}

/** A plot, and the same numbers as a table; nothing without rows. */
function sharePanel(title, first, shares, choose) {
  if (!shares.length) return null;
  const rows = shares.map((share) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, h("button.link", { onclick: () => choose(share) }, share.name)),
      h("td.number", {}, `${share.flop_ratio.toFixed(2)}×`),
      h("td.number", {}, decibelText(share)),
      h("td.number", {}, shareText(share)),
    ),
  );
  return h(
    `section.samples.by-${first}`,
    {},
    h("h2", {}, title),
    shareChart(`Relative L2 error by ${first}`, shares, choose),
    h("div.scroll", {}, h("table", {}, headRow([first, "#less work", "#PSNR", "#rel. L2"]), h("tbody", {}, rows))),
  );
}

/** A bar for each share, one below the other; the axis is logarithmic where they are far apart. */
function shareChart(title, shares, choose) {
  const values = shares.map((share) => share.rel_l2);
  const positive = values.filter((value) => value > 0);
  const [low, high] = [Math.min(...positive), Math.max(...positive)];
  const log = high > 100 * low;
  const [floor, span] = log ? [Math.floor(Math.log10(low) - 0.5), Math.log10(high) - Math.floor(Math.log10(low) - 0.5)] : [0, high];
  const part = (value) => (value > 0 ? ((log ? Math.log10(value) : value) - floor) / span : 0);
  const [label, full, row] = [230, 480, 20];
  const [width, height] = [label + full + 90, shares.length * row];
  const bars = shares.map((share, at) => {
    const [y, text, go] = [at * row, `${share.name}: ${shareText(share)}, PSNR ${decibelText(share)}`, () => choose(share)];
    const wide = Math.max(1, part(values[at]) * full);
    return s(
      "g.bar",
      { role: "button", tabindex: 0, "aria-label": text, onclick: go, onkeydown: (event) => event.key === "Enter" && go() },
      s("title", {}, text),
      s("rect.hit", { x: 0, y, width, height: row }),
      s("text", { x: label - 8, y: y + 14, "text-anchor": "end" }, clip(share.name, 34)),
      s("rect.fill", { x: label, y: y + 3, width: wide, height: row - 6, rx: 3 }),
      s("text", { x: label + wide + 8, y: y + 14 }, shareText(share)),
    );
  });
  return h(
    "figure.chart",
    {},
    h("figcaption", {}, h("strong", {}, title), log && h("span.muted", {}, " logarithmic")),
    s("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": title }, s("line.axis", { x1: label - 0.5, x2: label - 0.5, y1: 0, y2: height }), bars),
  );
}

function samplesCard(share) {
  return card("final samples", share.rel_l2 === 0 ? "equal" : decibelText(share), `relative L2 error ${shareText(share)}`);
}

function shareText(share) {
  if (share.rel_l2 === null) return "not finite";
  return share.rel_l2 >= 0.001 || !share.rel_l2 ? String(Number(share.rel_l2.toPrecision(2))) : share.rel_l2.toExponential(1);
}

function decibelText(share) {
  return share.psnr === null ? "-" : `${share.psnr.toFixed(1)} dB`;
}
