"use strict";
// The rows' columns, the state of the page (all of it is in the address after #), and what follows from it: the live ranking and
// the rows that are left.

gateau.model = (() => {
  const { ranking } = gateau;
  const arrays = new Map(), listeners = [];
  let about, numbers, heads = null, searched = null;

  const VIEWS = ["rows", "scatter", "compare", "about"];
  const MOVES = ["in", "out", "enters", "leaves"];
  const DECISIONS = ["keep", "drop", "open"];
  const EMPTY = {
    view: "rows", sort: "rank", down: false, row: null, segment: null, q: "", ranges: {}, values: {}, lasso: null, move: "", decided: "",
    method: "gateau", mode: "", hmp: "", cas: "", combine: "", alpha: 0.8, by: "fraction", amount: 0.1, strata: "", x: "", y: "", against: "given",
  };
  let state = { ...EMPTY }, initial = { ...EMPTY };
  const live = { ranks: null, mask: null, inGiven: null, left: null, counts: null };

  function array(name) {
    if (!arrays.has(name)) arrays.set(name, numbers.array(name));
    return arrays.get(name);
  }

  async function open() {
    numbers = await gateau.data.load("numbers");
    about = numbers.content;
    const tokens = new Float64Array(about.num_rows);
    for (const name of ["context_tokens", "response_tokens"]) {
      const counted = array(name);
      if (counted) counted.forEach((value, i) => (tokens[i] += value || 0));
    }
    arrays.set("tokens", tokens);
    arrays.set("row", Int32Array.from(tokens, (_, i) => i));
    const { given, modes } = about.ranking;
    initial = { ...EMPTY, mode: modes[given.mode] ? given.mode : Object.keys(modes)[0] };
    if (given.alpha !== null) initial.alpha = given.alpha;
    if (given.method && about.ranking.methods.includes(given.method)) initial.method = given.method;
    const [hmp, cas, combine] = modes[initial.mode] || [];
    for (const [name, usual] of [["hmp", hmp], ["cas", cas], ["combine", combine]]) {
      if (given[name] && given[name] !== usual) initial[name] = given[name];
    }
    if (!Object.keys(about.ranking.hmp).length && !Object.keys(about.ranking.cas).length) initial.method = about.ranking.methods[0] || "gateau";
    const names = columns().filter((x) => x.kind === "number").map((x) => x.name);
    initial.x = names.includes("need") ? "need" : names[0];
    initial.y = names.includes("cas") ? "cas" : names[1] || names[0];
    state = { ...initial, ...readHash() };
    update();
  }

  async function openHeads() {
    heads = (await gateau.data.load("heads")).content;
    if (state.q) update();
  }

  // Columns that can be sorted, filtered and drawn; the first four follow the live ranking.
  function columns() {
    const words = { hmp: "how much harder the response is for the short sibling", cas: "how attention and what segments tell go together" };
    const made = [
      { name: "rank", label: "rank", kind: "number", digits: 0, zero_is_none: true, words: "by the ranking of this page" },
      { name: "score", label: "score", kind: "number", digits: 4, small: true, words: "what rows are ordered by; high: train on this" },
      { name: "hmp", label: "HMP", kind: "number", digits: 3, small: true, words: about.ranking.hmp[live.ranks?.parts.hmp] || words.hmp },
      { name: "cas", label: "CAS", kind: "number", digits: 3, small: true, words: about.ranking.cas[live.ranks?.parts.cas] || words.cas },
      { name: "moved", label: "moved", kind: "number", digits: 0, words: "places up (+) or down since the ranking as given" },
    ];
    const other = { name: "other_rank", label: "rank in the other", kind: "number", digits: 0, zero_is_none: true };
    return [...made, ...about.columns, ...(array("other_rank") ? [other] : [])];
  }

  const strata = () => about.strata; // columns that they may be formed of

  const column = (name) => columns().find((x) => x.name === name);

  // A number a row, NaN where there is none.
  function values(name) {
    if (["rank", "score", "hmp", "cas"].includes(name)) return live.ranks[name];
    return name === "moved" ? live.moved : array(name);
  }

  const isNone = (spec, value) => Number.isNaN(value) || (spec.zero_is_none && value === 0);

  function text(name, row) {
    return heads ? heads[name][row] ?? "" : "";
  }

  // A column's name in a list that "~" parts, and back.
  const escaped = (name) => name.replaceAll("%", "%25").replaceAll("~", "%7E");
  const unescaped = (name) => name.replaceAll("%7E", "~").replaceAll("%25", "%");
  const decimal = (text) => (/^-?[\d.]+(e[+-]?\d+)?$/i.test(text) ? Number(text) : NaN); // no "", no "0x1"

  // Whether `select` takes such an amount.
  const isAmount = (by, amount) => amount > 0 && (by === "fraction" ? amount <= 1 : Number.isSafeInteger(amount));
  const isAlpha = (alpha) => alpha >= 0 && alpha <= 1;

  // The state as it stands in an address: what differs from the beginning.
  function hash() {
    const out = new URLSearchParams();
    for (const name of Object.keys(EMPTY)) {
      const value = state[name];
      if (name === "ranges" || name === "values") {
        for (const [of, limits] of Object.entries(value)) out.set(`${name}.${of}`, limits.map((x) => (Number.isFinite(x) ? x : "")).join("~"));
      } else if (name === "lasso") {
        if (value) out.set(name, [escaped(value.x), escaped(value.y), ...value.points.map((x) => Number(x.toPrecision(5)))].join("~"));
      } else if (value !== initial[name] && value !== null) out.set(name, value === true ? "1" : value === false ? "0" : value);
    }
    return out.toString();
  }

  // What an address says; what makes no sense here is passed over.
  function readHash() {
    const found = { ranges: {}, values: {} }, specs = new Map(columns().map((x) => [x.name, x]));
    const numeric = [...specs.values()].filter((x) => x.kind === "number").map((x) => x.name);
    const oneOf = (value, choices) => (choices.includes(value) ? value : undefined);
    const { modes, hmp, cas, combine, methods } = about.ranking;
    for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
      const [name, of] = [key.split(".")[0], key.slice(key.indexOf(".") + 1)];
      const parts = value.split("~");
      if (name === "ranges") {
        const limits = parts.map((x, i) => (x === "" ? [-Infinity, Infinity][i] : decimal(x)));
        if (numeric.includes(of) && limits.length === 2 && !limits.some(Number.isNaN)) found.ranges[of] = limits;
      } else if (name === "values") {
        const codes = parts.map(decimal), known = specs.get(of)?.values;
        if (known && codes.every((code) => Number.isInteger(code) && code in known)) found.values[of] = codes;
      } else if (name === "lasso") {
        const [x, y] = parts.map(unescaped), points = parts.slice(2).map(decimal), isArea = points.length > 5 && points.length % 2 === 0;
        if (numeric.includes(x) && numeric.includes(y) && isArea && points.every(Number.isFinite)) found.lasso = { x, y, points };
      } else if (["row", "segment"].includes(name)) {
        if (/^\d+$/.test(value) && (name === "segment" || Number(value) < about.num_rows)) found[name] = Number(value);
      } else if (["alpha", "amount"].includes(name)) {
        if (name === "amount" || isAlpha(decimal(value))) found[name] = decimal(value); // the amount's bounds depend on `by`: below
      } else if (name === "q") found.q = value;
      else if (name === "down") found.down = value === "1";
      else {
        const choices = {
          view: VIEWS, move: MOVES, decided: DECISIONS, by: ["fraction", "top_k", "max_tokens"], strata: strata(), sort: [...specs.keys(), "id", "instruction", "decision"],
          x: numeric, y: numeric, mode: Object.keys(modes), hmp: ["", ...Object.keys(hmp), "none"],
          cas: ["", ...Object.keys(cas), "none"], combine: ["", ...Object.keys(combine)], method: ["gateau", ...methods], against: ["given", "other"],
        }[name];
        const valid = choices && oneOf(value, choices);
        if (valid !== undefined) found[name] = valid;
      }
    }
    const whole = { ...initial, ...found };
    if (!isAmount(whole.by, whole.amount)) ["by", "amount"].forEach((name) => delete found[name]);
    if (whole.hmp === "none" && whole.cas === "none") ["hmp", "cas"].forEach((name) => delete found[name]);
    return found;
  }

  // Change the state: everything that follows from it is made anew, and listeners are told which parts have changed.
  function set(changes, { push = false } = {}) {
    state = { ...state, ...changes };
    const url = `#${hash()}`;
    if (url !== (location.hash || "#")) history[push ? "pushState" : "replaceState"](null, "", url);
    update(Object.keys(changes));
  }

  const QUIET = ["row", "segment", "view", "x", "y", "against", "notes"]; // which leave the rows as they are
  const RANKED_BY = ["method", "mode", "hmp", "cas", "combine", "alpha"];

  function update(changed = Object.keys(EMPTY)) {
    const is = (...names) => names.some((name) => changed.includes(name));
    if (is(...RANKED_BY) || !live.ranks) {
      live.ranks = ranking.rank(about.ranking, array, about.num_rows, state);
      const given = array("given_rank");
      live.moved = Float64Array.from(live.ranks.rank, (rank, i) => (rank && given[i] ? given[i] - rank : NaN));
      live.agreement = ranking.spearman(live.ranks.rank, given);
    }
    if (is(...RANKED_BY, "by", "amount", "strata", "decisions")) selectAnew();
    if (changed.some((name) => !QUIET.includes(name))) live.left = filtered();
    for (const listener of listeners) listener(is, changed);
  }

  // What is selected now, and what by the ranking as given, before anybody decided on a row.
  function selectAnew() {
    const numSafe = (state.method === "given" ? about.ranking.num_safe : null) ?? Infinity;
    const tokens = array("tokens"), { by, amount } = state, stratum = state.strata ? array(`strata:${state.strata}`) : null;
    const { mask, refusal, numLeft } = ranking.select(live.ranks.order, by, amount, tokens, gateau.decisions.ofAll(), stratum, numSafe);
    live.mask = mask;
    live.inGiven = ranking.select(givenOrder(array("given_rank")), by, amount, tokens, null, stratum).mask;
    live.counts = { kept: 0, then: 0, enters: 0, leaves: 0, tokens: 0, refusal, numLeft };
    for (let i = 0; i < mask.length; i++) {
      live.counts.kept += mask[i];
      live.counts.then += live.inGiven[i];
      live.counts.tokens += mask[i] * tokens[i];
      live.counts.enters += mask[i] && !live.inGiven[i] ? 1 : 0;
      live.counts.leaves += !mask[i] && live.inGiven[i] ? 1 : 0;
    }
  }

  function givenOrder(ranks) {
    const rows = [];
    for (let i = 0; i < ranks.length; i++) if (ranks[i] > 0) rows.push(i);
    return Int32Array.from(rows).sort((a, b) => ranks[a] - ranks[b]);
  }

  const isIn = (row) => live.mask[row] === 1;

  function moveOf(row) {
    const now = isIn(row), then = live.inGiven[row] === 1;
    return now ? (then ? "in" : "enters") : then ? "leaves" : "out";
  }

  // Which filters are set, each as a test of a row; `except` leaves one column out, for its own chart.
  function tests(except) {
    const found = [];
    for (const [name, [low, high]] of Object.entries(state.ranges)) {
      const spec = column(name), x = values(name);
      if (name !== except && x) found.push((i) => x[i] >= low && x[i] <= high && !isNone(spec, x[i]));
    }
    for (const [name, codes] of Object.entries(state.values)) {
      const x = values(name), chosen = new Set(codes);
      if (name !== except && x) found.push((i) => chosen.has(x[i]));
    }
    if (state.lasso) {
      const { x: nameX, y: nameY, points } = state.lasso, x = values(nameX), y = values(nameY);
      if (except !== "lasso") found.push((i) => isInside(x[i], y[i], points));
    }
    if (state.move) found.push((i) => (state.move === "in" || state.move === "out" ? isIn(i) === (state.move === "in") : moveOf(i) === state.move));
    if (state.decided) {
      const decided = gateau.decisions;
      found.push((i) => (decided.of(i).decision || "open") === state.decided);
    }
    if (state.q && heads) {
      searched ||= heads.id.map((id, i) => [id ?? "", heads.key[i] ?? "", heads.instruction[i], heads.response[i]].join("\n").toLowerCase());
      const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
      found.push((i) => words.every((word) => searched[i].includes(word)));
    }
    return found;
  }

  function passing(except) {
    const all = tests(except), mask = new Uint8Array(about.num_rows);
    for (let i = 0; i < mask.length; i++) mask[i] = all.every((test) => test(i)) ? 1 : 0;
    return mask;
  }

  function isInside(x, y, points) {
    let inside = false;
    for (let i = 0, j = points.length - 2; i < points.length; j = i, i += 2) {
      const [ax, ay, bx, by] = [points[i], points[i + 1], points[j], points[j + 1]];
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
    }
    return inside;
  }

  // Rows that pass all filters, sorted.
  function filtered() {
    const mask = passing(), rows = [], { sort, down } = state;
    for (let i = 0; i < mask.length; i++) if (mask[i]) rows.push(i);
    const order = Int32Array.from(rows);
    const then = (a, b) => (live.ranks.rank[a] || Infinity) - (live.ranks.rank[b] || Infinity) || a - b;
    const spec = column(sort), sign = down ? -1 : 1;
    let key;
    if (spec) {
      const x = values(sort); // rows without a value come last either way
      key = (i) => (isNone(spec, x[i]) ? Infinity : sign * x[i]);
    } else if (sort === "decision") key = (i) => -sign * ["", "drop", "keep"].indexOf(gateau.decisions.of(i).decision);
    if (key) {
      const keys = Float64Array.from({ length: about.num_rows }, (_, i) => key(i));
      return order.sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : then(a, b) || 0));
    }
    const texts = heads ? heads[sort] : [];
    return order.sort((a, b) => {
      const [x, y] = [texts[a] ?? "", texts[b] ?? ""];
      return x < y ? -sign : x > y ? sign : then(a, b) || 0;
    });
  }

  function numFilters() {
    return Object.keys(state.ranges).length + Object.keys(state.values).length + [state.lasso, state.move, state.decided, state.q].filter(Boolean).length;
  }

  const CLEAR = { ranges: {}, values: {}, lasso: null, move: "", decided: "", q: "" };

  addEventListener("hashchange", () => about && reread());
  addEventListener("popstate", () => about && reread());
  function reread() {
    const before = JSON.stringify(state), next = { ...initial, ...readHash() };
    if (JSON.stringify(next) === before) return;
    state = next;
    update();
  }

  return {
    open, openHeads, QUIET, columns, column, strata, values, isNone, text, set, passing, isIn, moveOf, numFilters, array, isAmount, isAlpha, CLEAR,
    listen: (listener) => listeners.push(listener),
    refresh: (...names) => update(names),
    get about() { return about; },
    get state() { return state; },
    get live() { return live; },
    get heads() { return heads; },
    get initial() { return initial; },
  };
})();
