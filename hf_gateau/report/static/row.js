"use strict";
// One row: its numbers, its response token by token, its context as a strip of segments and as text.

gateau.row = (() => {
  const { get, el, shown, number } = gateau.dom;
  const { model, decisions, charts } = gateau;
  const UNKNOWN = -32768, AROUND = 1500; // characters of the context around a segment
  const FULL = { gain: 1, attention: 4 }; // of a full bar: nats a token; times the mean
  const MANY_CHARACTERS = 20000; // of a text that is shown at once
  let shownRow = null, now = null, turn = 0;

  const nats = (values) => values && Float64Array.from(values, (x) => (x === UNKNOWN ? NaN : x / 1000));

  async function read(row) {
    const piece = await gateau.data.load(`rows-${String(model.array("piece")[row]).padStart(5, "0")}`);
    const item = model.array("item")[row], record = piece.content[item];
    const array = (name) => piece.array(`${item}.${name}`);
    const [file, place] = record.text;
    const context = file < 0 ? "" : (await gateau.data.load(`texts-${String(file).padStart(5, "0")}`)).content[place];
    const attention = nats(array("attention"));
    return {
      ...record, context, starts: array("starts"), ends: array("ends"), best: array("best"), tokenStarts: array("token_starts"),
      gain: nats(array("gain")), attention: attention && attention.map(Math.exp),
      nll: Object.fromEntries(["long", "short", "no_context", "far", "near"].map((name) => [name, nats(array(name))])),
    };
  }

  function open() {
    get("row-close").addEventListener("click", close);
    get("row-before").addEventListener("click", () => gateau.table.step(-1));
    get("row-after").addEventListener("click", () => gateau.table.step(1));
    for (const name of ["keep", "drop"]) {
      get(`row-${name}`).addEventListener("click", () => toggle(model.state.row, name));
    }
    get("row-note").addEventListener("input", () => decisions.decide([model.state.row], { note: get("row-note").value }));
    new ResizeObserver(() => now && drawStrip()).observe(get("row"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => now && drawStrip());
    model.listen((is) => {
      if (model.state.row !== shownRow) show();
      else if (is("segment") && now) segmentAnew();
      decisionAnew();
      numbersAnew();
    });
    show();
  }

  function close() {
    model.set({ row: null, segment: null }, { push: true });
    get("grid").focus();
  }

  // Decide on a row, or take the same decision back.
  function toggle(row, decision) {
    if (row === null) return;
    decisions.decide([row], { decision: decisions.of(row).decision === decision ? "" : decision });
  }

  async function show() {
    const { row } = model.state, mine = ++turn;
    shownRow = row;
    now = null;
    document.body.classList.toggle("with-row", row !== null);
    get("row").hidden = row === null;
    if (row === null) return;
    get("row-title").textContent = title(row);
    get("row-body").setAttribute("aria-busy", "true");
    decisionAnew();
    numbersAnew();
    let found;
    try {
      found = await read(row);
    } catch (error) {
      if (mine === turn) get("row-body").replaceChildren(el("p", { role: "alert" }, `The row's texts could not be read: ${error.message}.`));
      return;
    }
    if (mine !== turn) return; // another one was opened meanwhile
    now = found;
    get("row-body").removeAttribute("aria-busy");
    build(row);
    get("row-body").scrollTop = 0;
    if (!gateau.dom.isTyping({ target: document.activeElement }) && document.activeElement === document.body) get("row-title").focus();
  }

  function title(row) {
    const rank = model.live.ranks.rank[row], id = shown(model.text("id", row));
    return `${rank ? `Rank ${number(rank)} of ${number(model.live.ranks.order.length)}` : "Not ranked"}${id ? `: ${id}` : ""}`;
  }

  function decisionAnew() {
    const { row } = model.state;
    if (row === null) return;
    const { decision, note } = decisions.of(row), canDecide = decisions.keyOf(row) !== null;
    for (const name of ["keep", "drop"]) {
      get(`row-${name}`).setAttribute("aria-pressed", decision === name);
      get(`row-${name}`).disabled = !canDecide;
    }
    const field = get("row-note");
    field.disabled = !canDecide;
    field.placeholder = canDecide ? "note" : "no key: cannot be decided on";
    if (field.value !== note) field.value = note; // also while it is written in: it is the open row's
  }

  function numbersAnew() {
    const { row } = model.state;
    if (row === null) return;
    get("row-title").textContent = title(row);
    const cells = [];
    for (const spec of model.columns()) {
      if (spec.kind !== "number" || spec.name === "rank") continue;
      const value = model.values(spec.name)[row];
      if (!model.isNone(spec, value)) cells.push(el("div", { title: shown(spec.words || "") }, el("dt", {}, shown(spec.label)), el("dd", {}, number(value, spec.digits, spec.small))));
    }
    get("row-numbers").replaceChildren(...cells);
    const why = model.column("own:gateau_note"), code = why && model.values(why.name)[row];
    get("row-why").textContent = code ? `Not ranked: ${shown(why.values[code])}` : "";
  }

  function section(name, ...children) {
    return el("section", { "aria-label": name }, el("h3", {}, name), ...children);
  }

  // A text, its beginning first where it is very long.
  function long(text, className = "text") {
    const box = el("div", { className, dir: "auto" }, shown(text.slice(0, MANY_CHARACTERS)));
    if (text.length <= MANY_CHARACTERS) return box;
    let told = MANY_CHARACTERS;
    const more = el("button", { type: "button", onclick: () => {
      box.append(shown(text.slice(told, told + MANY_CHARACTERS)));
      told += MANY_CHARACTERS;
      if (told >= text.length) more.remove();
    } }, `more of ${number(text.length)} characters`);
    return el("div", {}, box, more);
  }

  function build(row) {
    const parts = [section("Instruction", long(now.instruction)), section("Response", ...response())];
    if (now.gain) parts.push(section("Context", ...strip()));
    else if (now.context) parts.push(section("Context", ...(now.cut ? [el("p", { className: "muted" }, now.cut)] : []), long(now.context)));
    if (now.before) parts.push(section("Before the context", long(now.before)));
    const others = neighbours(row);
    if (others.length) parts.push(section(`On the same document: ${number(others.length)} other rows`, el("ul", { className: "neighbours" }, ...others.slice(0, 50).map(neighbour))));
    parts.push(section("Columns", el("dl", { className: "columns" }, ...now.meta.map(([name, value]) => el("div", {}, el("dt", {}, shown(name)), el("dd", {}, shown(value)))))));
    get("row-body").replaceChildren(...parts);
    if (now.gain) segmentAnew();
  }

  // The response

  function needOf(i) {
    const { long: full, short, no_context: none } = now.nll;
    if (!full || !short) return NaN;
    const without = none ? Math.min(short[i], none[i]) : short[i];
    return Math.max(0, without - full[i] - model.about.ranking.tau);
  }

  function tokenWords(i) {
    const { long: full, short, no_context: none, far, near } = now.nll, told = [];
    for (const [name, values] of [["long", full], ["short", short], ["no context", none], ["best far segment", far], ["best near segment", near]]) {
      if (values?.length > i && !Number.isNaN(values[i])) told.push(`${name} ${number(values[i], 2)}`);
    }
    const best = now.best?.[i] >= 0 && far ? `; its best far segment is ${now.best[i] + 1}` : "";
    return `need ${number(needOf(i), 2)} nats; negative log-likelihood: ${told.join(", ")}${best}`;
  }

  function response() {
    const count = now.nll.long?.length || 0;
    if (!count) return [long(now.response)];
    const info = el("p", { className: "muted info", "aria-live": "polite" }, "Point at a token, or move through them with the arrow keys.");
    const box = el("div", { className: "text tokens", tabIndex: 0, role: "application", dir: "auto", "aria-label": "Tokens of the response; arrow keys move" });
    const steps = model.about.ranking.need_steps, said = now.read, tokens = [];
    const starts = said !== null && now.tokenStarts?.length === count ? now.tokenStarts : null;
    for (let i = 0; i < count; i++) {
      const text = starts ? said.slice(starts[i], starts[i + 1] ?? said.length) : "";
      const need = needOf(i), step = steps.filter((least) => need > least).length;
      const token = el("span", { className: starts ? "token" : "token square" }, shown(text));
      token.dataset.need = step;
      token.dataset.at = i;
      tokens.push(token);
      box.append(token);
    }
    let active = -1;
    const point = (i) => {
      tokens[active]?.classList.remove("active");
      active = i;
      tokens[i].classList.add("active");
      const name = starts ? `“${tokens[i].textContent.trim() || "(no text)"}”, ` : "";
      info.textContent = `token ${i + 1} of ${count}, ${name}${tokenWords(i)}`;
    };
    box.addEventListener("pointerover", (event) => event.target.dataset.at && point(Number(event.target.dataset.at)));
    box.addEventListener("click", (event) => {
      const i = Number(event.target.dataset.at ?? -1);
      if (i >= 0 && now.best?.[i] >= 0 && now.gain) model.set({ segment: now.best[i] });
    });
    box.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Enter" && active >= 0 && now.best?.[active] >= 0) return model.set({ segment: now.best[active] });
      if (!by) return;
      event.preventDefault();
      point(Math.max(0, Math.min(count - 1, active + by)));
    });
    const key = el("p", { className: "key muted" }, `nats of a token that only far context tells, above ${model.about.ranking.tau}: `, ...steps.map((least, i) => {
      const sample = el("span", { className: "token sample" }, `> ${least}`);
      sample.dataset.need = i + 1;
      return sample;
    }));
    return [key, box, info, ...(starts ? [] : [long(now.response)])];
  }

  // The context

  function strip() {
    const canvas = el("canvas", { id: "strip", className: "strip", tabIndex: 0, role: "slider", "aria-label": "Segments of the context", "aria-valuemin": 1, "aria-valuemax": now.gain.length });
    canvas.addEventListener("click", (event) => {
      const share = (event.clientX - canvas.getBoundingClientRect().left) / canvas.clientWidth;
      model.set({ segment: Math.max(0, Math.min(now.gain.length - 1, Math.floor(share * now.gain.length))) });
    });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10, Home: -Infinity, End: Infinity };
      if (!(event.key in steps)) return;
      event.preventDefault();
      model.set({ segment: Math.max(0, Math.min(now.gain.length - 1, chosen() + steps[event.key])) });
    });
    const best = [...now.gain.keys()].sort((a, b) => now.gain[b] - now.gain[a]).slice(0, 3).filter((i) => now.gain[i] > 0.02);
    return [
      el("p", { className: "key muted" }, el("span", { className: "swatch gain" }), ` gain of each segment alone over the response ${now.baseline}; full bar: 1 nat a token. `,
        el("span", { className: "swatch attention" }), " attention; full bar: 4 times the mean. ", el("span", { className: "swatch near" }), " near the end: what the short sibling sees"),
      canvas,
      el("p", { className: "best" }, best.length ? "tells most: " : "No segment alone tells more of the response than the instruction does. ",
        ...best.map((i) => el("button", { type: "button", onclick: () => model.set({ segment: i }) }, `segment ${i + 1}, ${number(now.gain[i], 2)}`))),
      el("p", { id: "segment-words", className: "muted", "aria-live": "polite" }),
      el("div", { id: "segment-text", className: "text context", dir: "auto" }),
      el("p", { className: "best" },
        el("button", { type: "button", onclick: () => model.set({ segment: Math.max(0, chosen() - 1) }) }, "← segment before"),
        el("button", { type: "button", onclick: () => model.set({ segment: Math.min(now.gain.length - 1, chosen() + 1) }) }, "segment after →")),
    ];
  }

  // The segment that is read: the one that was chosen, or the one that tells most.
  function chosen() {
    const { segment } = model.state;
    if (segment !== null && segment < now.gain.length) return segment;
    return now.gain.reduce((best, value, i) => (value > now.gain[best] ? i : best), 0);
  }

  const isNear = (i) => i >= now.gain.length - now.near;

  function segmentWords(i) {
    const seen = now.attention ? `, attention ${number(now.attention[i], 1)} times the mean` : "";
    return `segment ${i + 1} of ${now.gain.length}, ${isNear(i) ? "near" : "far"}: gain ${number(now.gain[i], 2)} nats a token${seen}`;
  }

  function segmentAnew() {
    const i = chosen(), canvas = get("strip");
    if (!canvas) return;
    canvas.setAttribute("aria-valuenow", i + 1);
    canvas.setAttribute("aria-valuetext", segmentWords(i));
    const about = now.starts ? (now.exact ? "" : "; its text is about here") : "; nothing tells its text";
    get("segment-words").textContent = segmentWords(i) + about;
    const box = get("segment-text");
    box.replaceChildren();
    if (now.starts) {
      const [start, end] = [now.starts[i], now.ends[i]], { context } = now;
      const from = Math.max(0, start - AROUND), to = Math.min(context.length, end + AROUND);
      const mark = el("mark", {}, shown(context.slice(start, end)));
      const begin = from === 0 && now.cut ? el("span", { className: "muted" }, `${now.cut}\n`) : null;
      box.append(...[begin, from > 0 ? "… " : "", shown(context.slice(from, start)), mark, shown(context.slice(end, to)), to < context.length ? " …" : ""].filter((x) => x !== null));
      box.scrollTop = mark.offsetTop - 60;
    }
    drawStrip();
  }

  function drawStrip() {
    const canvas = get("strip");
    if (!canvas || !now?.gain) return;
    const { context, width, height } = charts.prepared(canvas), colour = charts.colours(), count = now.gain.length;
    const middle = Math.round(height * 0.62), step = width / count, wide = Math.max(1, step - (step > 4 ? 1 : 0));
    context.fillStyle = colour.faint;
    context.fillRect((count - now.near) * step, 0, now.near * step, height);
    for (let i = 0; i < count; i++) {
      const up = Math.min(1, now.gain[i] / FULL.gain) * (middle - 2);
      context.fillStyle = up > 0 ? colour.first : colour.muted;
      context.fillRect(i * step, middle - Math.max(0, up), wide, Math.max(up > 0 ? 1 : 0, up));
      if (!now.attention) continue;
      context.fillStyle = colour.second;
      context.fillRect(i * step, middle + 2, wide, Math.min(1, now.attention[i] / FULL.attention) * (height - middle - 4));
    }
    context.fillStyle = colour.muted;
    context.fillRect(0, middle, width, 1);
    context.strokeStyle = colour.ink;
    context.lineWidth = 2;
    context.strokeRect(chosen() * step - 1, 1, Math.max(4, wide + 2), height - 2);
  }

  // Rows on the same document

  function neighbours(row) {
    const contexts = model.array("context"), ranks = model.live.ranks.rank, found = [];
    if (!now.context) return found;
    for (let i = 0; i < contexts.length; i++) if (i !== row && contexts[i] === contexts[row]) found.push(i);
    return found.sort((a, b) => (ranks[a] || Infinity) - (ranks[b] || Infinity));
  }

  function neighbour(row) {
    const rank = model.live.ranks.rank[row];
    const said = `${rank ? `rank ${number(rank)}` : "not ranked"} · ${shown(model.text("id", row))} · ${shown(model.text("instruction", row))}`;
    return el("li", {}, el("button", { type: "button", className: "link", onclick: () => model.set({ row, segment: null }, { push: true }) }, said));
  }

  return { open, close, toggle };
})();
