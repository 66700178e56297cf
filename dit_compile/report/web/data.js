// The report, with what the views ask of it: stages as graphs of nodes, lines of IR, ancestry.

class Report {
  constructor(data) {
    Object.assign(this, { schedule: null, trajectory: null, analysis: {}, command: "" }, data);
    this.stageOf = this.passes.map((pass) => pass.stage);
    this.cache = new Map();
  }

  /** The stage before and the stage after the pass at a position. */
  before(position) {
    return position ? this.stageOf[position - 1] : 0;
  }

  after(position) {
    return this.stageOf[position];
  }

  stage(index) {
    if (!this.cache.has(index)) this.cache.set(index, new Stage(this, index));
    return this.cache.get(index);
  }

  /** What final samples cost with all passes up to the one at a position, if that was measured. */
  share(position) {
    return this.trajectory?.passes.find((share) => share.position === position) ?? null;
  }

  /** What a stage is called: after the pass that made it. */
  stageName(index) {
    if (index === 0) return "captured";
    const position = this.passes.findIndex((pass) => pass.stage === index);
    return `after #${position} ${this.passes[position].name}`;
  }

  /** The pass that made a stage. */
  maker(index) {
    return index ? this.passes.findIndex((pass) => pass.stage === index && pass.changed) : -1;
  }

  /** For a value of a stage: what it stands for in each earlier stage, back to the capture. */
  ancestry(value, index) {
    const chain = [];
    let values = [value];
    for (let stage = index; stage > 0 && values.length; stage--) {
      const back = this.backward(stage);
      const earlier = this.stage(stage - 1);
      const found = new Set();
      for (const each of values) {
        if (earlier.owner.has(each)) found.add(each);
        for (const old of back.get(each) || []) found.add(old);
        const copied = this.stage(stage).owner.get(each)?.copy_of;
        if (copied !== undefined && !earlier.owner.has(each) && earlier.owner.has(copied)) found.add(copied);
      }
      values = [...found];
      chain.push({ stage: stage - 1, values });
    }
    return chain;
  }

  /** From each value that a stage brought to the values that it stands for. */
  backward(index) {
    const key = `back ${index}`;
    if (!this.cache.has(key)) {
      const back = new Map();
      for (const move of this.passes[this.maker(index)].moves || [])
        for (const now of move.after) back.set(now, [...(back.get(now) || []), ...move.before]);
      this.cache.set(key, back);
    }
    return this.cache.get(key);
  }
}

class Stage {
  constructor(report, index) {
    const data = report.stages[index];
    this.index = index;
    this.cost = data.cost;
    this.errors = data.errors || null;
    this.owner = new Map(); // value -> the node whose line makes it
    this.names = new Map(); // value -> what the stage calls it
    this.users = new Map(); // value -> nodes that read it
    this.graphs = data.graphs.map((graph) => {
      const nodes = graph.nodes.map((at) => report.nodes[at]);
      for (const node of nodes) this.enter(node, graph.name);
      return { name: graph.name, ahead: graph.ahead, nodes, returns: graph.returns };
    });
  }

  enter(node, graph) {
    node.graph = graph;
    const hidden = node.role === "weight" || node.role === "derived";
    this.names.set(node.id, hidden ? `@${node.path}` : `%${node.name}`);
    this.owner.set(node.id, node);
    for (const result of node.results || []) {
      if (!result) continue;
      this.owner.set(result.id, node);
      this.names.set(result.id, `%${result.name}`);
    }
    for (const value of reads(node)) {
      if (!this.users.has(value)) this.users.set(value, []);
      this.users.get(value).push(node);
    }
  }

  usersOf(node) {
    return [...new Set(valuesOf(node).flatMap((value) => this.users.get(value) || []))];
  }

  inputsOf(node) {
    return [...new Set(reads(node).map((value) => this.owner.get(value)).filter(Boolean))];
  }

  /** A line of IR as pieces: {text, kind, value}. */
  pieces(node) {
    const out = [];
    const put = (text, kind = "", value = null) => out.push({ text, kind, value });
    const argument = (arg) => {
      if (Array.isArray(arg)) {
        put("[");
        arg.forEach((item, i) => (i && put(", "), argument(item)));
        put("]");
        return;
      }
      const value = reference(arg);
      if (value === null) put(arg, "constant");
      else put(this.names.get(value) ?? arg, "value", value);
    };
    if (node.op === "input") {
      put(this.names.get(node.id), "value", node.id);
      put(` : ${node.type}`, "type");
      put(`  ${node.role}`, "role");
      return out;
    }
    if (node.results)
      node.results.forEach((result, i) => {
        if (i) put(", ");
        if (result) put(`%${result.name}`, "value", result.id);
        else put("_");
      });
    else put(`%${node.name}`, "value", node.id);
    put(" = ");
    put(node.op, "op");
    put("(");
    (node.args || []).forEach((arg, i) => (i && put(", "), argument(arg)));
    Object.entries(node.kwargs || {}).forEach(([key, arg], i) => {
      put(`${i || (node.args || []).length ? ", " : ""}${key}=`);
      argument(arg);
    });
    put(")");
    put(` : ${node.type}`, "type");
    return out;
  }

  line(node) {
    return this.pieces(node).map((piece) => piece.text).join("");
  }

  /** A node as a Python expression. */
  python(node) {
    const name = (value) => (this.names.get(value) || "").replace(/^[%@]/, "").replace(/\W+/g, "_");
    const constant = (text) =>
      DTYPES[text] ? `torch.${DTYPES[text]}` : text === "end" ? "sys.maxsize" : /^-?(inf|nan)$/.test(text) ? `float("${text}")` : text;
    const argument = (arg) =>
      Array.isArray(arg) ? `[${arg.map(argument).join(", ")}]` : reference(arg) === null ? constant(arg) : name(reference(arg));
    const left = node.results ? node.results.map((r) => (r ? name(r.id) : "_")).join(", ") : name(node.id);
    const inner = [...(node.args || []).map(argument), ...Object.entries(node.kwargs || {}).map(([key, arg]) => `${key}=${argument(arg)}`)];
    return `${left} = torch.ops.${node.op}.${node.overload || "default"}(${inner.join(", ")})`;
  }

  text() {
    return this.graphs
      .map((graph) => {
        const lines = graph.nodes.filter((node) => node.op !== "input").map((node) => `  ${this.line(node)}`);
        return `ditc.graph @${graph.name} {\n${lines.join("\n")}\n}`;
      })
      .join("\n\n");
  }
}

const DTYPES = {
  f16: "float16", bf16: "bfloat16", f32: "float32", f64: "float64", i8: "int8", i16: "int16",
  i32: "int32", i64: "int64", u8: "uint8", b8: "bool", c64: "complex64", c128: "complex128",
};

/** The value that an argument names, null for a constant. */
function reference(arg) {
  return arg[0] === "%" ? Number(arg.slice(1)) : null;
}

/** The values that a node reads, in order. */
function reads(node) {
  return [...(node.args || []), ...Object.values(node.kwargs || {})]
    .flat(Infinity)
    .map(reference)
    .filter((value) => value !== null);
}

/** The values that a node makes. */
function valuesOf(node) {
  return [node.id, ...(node.results || []).filter(Boolean).map((result) => result.id)];
}
