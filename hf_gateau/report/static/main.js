"use strict";
// The page's controls, its views and its keys.

gateau.main = (() => {
  const { get, el, shown, number, isTyping } = gateau.dom;
  const { model, decisions, table, charts, row, compare } = gateau;

  // Ranking

  function fill(id, names, label = (name) => name) {
    get(id).replaceChildren(...names.map((name) => el("option", { value: name }, label(name))));
  }

  function openRanking() {
    const { modes, hmp, cas, combine, methods } = model.about.ranking;
    fill("method", [...(Object.keys({ ...hmp, ...cas }).length ? ["gateau"] : []), ...methods], (name) => (name === "given" ? "as given" : name));
    fill("mode", Object.keys(modes));
    for (const option of get("mode").options) {
      const [a, b] = modes[option.value];
      if (!(a in hmp && b in cas)) option.label = `${option.value} (rows lack ${[a in hmp ? null : "its HMP", b in cas ? null : "its CAS"].filter(Boolean).join(", ")})`;
    }
    const ofMode = (name) => name || "as the mode has it";
    fill("hmp", ["", ...Object.keys(hmp), "none"], ofMode);
    fill("cas", ["", ...Object.keys(cas), "none"], ofMode);
    fill("combine", ["", ...Object.keys(combine)], ofMode);
    for (const name of ["method", "mode", "hmp", "cas", "combine"]) {
      get(name).addEventListener("change", () => {
        const changes = { [name]: get(name).value }, { hmp: a, cas: b } = { ...model.state, ...changes };
        if (a === "none" && b === "none") changes[name === "hmp" ? "cas" : "hmp"] = ""; // which would leave nothing to rank by
        if (name === "mode") Object.assign(changes, { hmp: "", cas: "", combine: "" });
        model.set(changes);
      });
    }
    for (const id of ["alpha", "alpha-number"]) numberField(get(id), "alpha", model.isAlpha);
    numberField(get("amount"), "amount", (value) => model.isAmount(model.state.by, value));
    fill("strata", ["", ...model.strata()], (name) => name || "no strata");
    get("strata").addEventListener("change", () => model.set({ strata: get("strata").value }));
    get("by").addEventListener("change", () => {
      const by = get("by").value, { counts } = model.live;
      const amount = { fraction: 0.1, top_k: Math.max(1, counts.kept), max_tokens: Math.max(1, counts.tokens) }[by];
      model.set({ by, amount });
    });
    get("as-given").addEventListener("click", () => {
      const { method, mode, hmp, cas, combine, alpha } = model.initial;
      model.set({ method, mode, hmp, cas, combine, alpha });
    });
    for (const move of ["in", "enters", "leaves"]) {
      get(`show-${move}`).addEventListener("click", () => model.set({ move: model.state.move === move ? "" : move }));
    }
    get("copy").addEventListener("click", () => copy(get("command").textContent, get("copy")));
    get("copy-link").addEventListener("click", () => copy(location.href, get("copy-link")));
    model.listen(rankingAnew);
    rankingAnew();
  }

  // A field of a number of the state: what can be used is, as it is typed; what cannot is marked, and gives way when the field is left.
  function numberField(field, name, isValid) {
    const anew = () => {
      if (field.value === "" || Number(field.value) !== model.state[name]) field.value = model.state[name];
      field.removeAttribute("aria-invalid");
    };
    field.addEventListener("input", () => {
      const canUse = field.value !== "" && isValid(Number(field.value));
      field.setAttribute("aria-invalid", !canUse);
      if (canUse) model.set({ [name]: Number(field.value) });
    });
    for (const left of ["change", "blur"]) field.addEventListener(left, anew);
    model.listen((is) => (is(name) || document.activeElement !== field) && anew());
    anew();
  }

  const REFUSALS = {
    kept: () => "The rows that you keep are more than is asked for: raise it, or keep fewer.",
    left: (counts) => `More is asked for than the ${number(counts.numLeft)} rows that are left to select: lower it.`,
    none: () => "No row is selected: ask for more.",
    uncertain: () => `That no row without segments belongs there is certain of the best ${number(model.about.ranking.num_safe)} alone: ask for no more, or measure with a larger segments_for.`,
  };

  function rankingAnew() {
    const { state, live, about } = model, { hmp, cas, combine } = about.ranking, isGateau = state.method === "gateau";
    for (const name of ["method", "mode", "hmp", "cas", "combine", "by", "strata"]) get(name).value = state[name];
    for (const name of ["mode", "hmp", "cas", "combine", "alpha", "alpha-number"]) get(name).disabled = !isGateau;
    get("gateau-only").hidden = !isGateau;
    get("strata").disabled = state.by === "max_tokens"; // `select` wants a min_share with it
    get("strata-field").hidden = !model.strata().length;
    [get("amount").step, get("amount").max] = state.by === "fraction" ? ["0.01", "1"] : ["1", ""];
    const { parts } = live.ranks;
    get("parts").textContent = isGateau
      ? `HMP ${parts.hmp}: ${hmp[parts.hmp] || "left out"}. CAS ${parts.cas}: ${cas[parts.cas] || "left out"}. Combined ${parts.combine}: ${combine[parts.combine]?.words || ""}.`
      : "";
    const { kept, tokens, enters, leaves, then, refusal } = live.counts, ranked = live.ranks.order.length;
    get("over").hidden = !refusal;
    get("over").textContent = REFUSALS[refusal]?.(live.counts) || "";
    get("selected").textContent = `${number(kept)} of ${number(ranked)} ranked rows, ${number(tokens)} tokens`;
    const { rho } = live.agreement, overlap = then ? (then - leaves) / then : NaN;
    get("moved").textContent = `Against the ranking as given: Spearman ${number(rho, 3)}, ${number(100 * overlap, 1)}% of its selection is kept.`;
    for (const [move, count, words] of [["in", kept, "in"], ["enters", enters, "enter"], ["leaves", leaves, "leave"]]) {
      const button = get(`show-${move}`);
      button.textContent = `${number(count)} ${words}`;
      button.setAttribute("aria-pressed", state.move === move);
    }
    get("command").textContent = command();
  }

  const RANKED_BY = ["method", "mode", "hmp", "cas", "combine", "alpha"];

  const quoted = (word) => (/^[\w.-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

  // The commands that make the selection of this page.
  function command() {
    const { state, initial } = model, lines = [];
    const isAsGiven = state.method === "given" || RANKED_BY.every((name) => state[name] === initial[name]);
    if (!isAsGiven) {
      const words = ["hf-gateau", "rank", "RANKED", "-o", "ranked-anew.parquet"];
      if (state.method !== "gateau") words.push("--method", state.method);
      else {
        words.push("--mode", state.mode, "--alpha", state.alpha);
        for (const name of ["hmp", "cas", "combine"]) if (state[name]) words.push(`--${name}`, state[name]);
        const { tau, usual_tau } = model.about.ranking;
        if (tau !== usual_tau) words.push("--tau", tau);
      }
      lines.push(words.join(" "));
    }
    const words = ["hf-gateau", "select", isAsGiven ? "RANKED" : "ranked-anew.parquet", "-o", "selected.parquet", `--${state.by}`, state.amount];
    if (state.strata && state.by !== "max_tokens") words.push(...(state.strata.startsWith("-") ? [`--strata=${quoted(state.strata)}`] : ["--strata", quoted(state.strata)]));
    const { keep, drop } = decisions.counts();
    if (keep + drop) words.push("--decisions", "decisions.csv");
    return [...lines, words.join(" ")].join("\n");
  }

  async function copy(text, button) {
    try {
      await navigator.clipboard.writeText(text);
    } catch { // from the disk, or without leave
      const field = el("textarea", { value: text });
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
    const was = button.textContent;
    button.textContent = "copied";
    setTimeout(() => (button.textContent = was), 1200);
  }

  // Filters and decisions

  function openFilters() {
    const search = get("search");
    let waiting;
    search.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => model.set({ q: search.value }), 120);
    });
    let told = null;
    const searchAnew = () => {
      if (model.state.q === told) return; // what is being typed stays
      told = model.state.q;
      clearTimeout(waiting);
      if (search.value !== told) search.value = told;
    };
    model.listen(searchAnew);
    searchAnew();
    get("decided").addEventListener("change", () => model.set({ decided: get("decided").value }));
    get("clear").addEventListener("click", () => model.set({ ...model.CLEAR }));
    for (const decision of ["keep", "drop", ""]) {
      get(`all-${decision || "open"}`).addEventListener("click", () => decideOnAll(decision));
    }
    get("export").addEventListener("click", decisions.save);
    get("import").addEventListener("change", async () => {
      const [file] = get("import").files;
      if (!file) return;
      try {
        const { done, elsewhere, undo } = decisions.take(new Uint8Array(await file.arrayBuffer()), file.name);
        say(`Decisions or notes on ${number(done)} rows read${elsewhere ? `, ${number(elsewhere)} of them not here` : ""}.`, undo);
      } catch (error) {
        say(`${error.message}; nothing was taken.`);
      }
      get("import").value = "";
    });
    model.listen(filtersAnew);
    filtersAnew();
  }

  function decideOnAll(decision) {
    const { left } = model.live, what = decision || "undecided";
    const { done, undo } = decisions.decide(left, { decision });
    say(`${number(done)} rows marked as ${what}${done < left.length ? `; ${number(left.length - done)} have no key` : ""}.`, undo);
  }

  function say(text, undo = null) {
    const button = el("button", { type: "button", onclick: () => (undo(), say("")) }, "undo");
    get("said").replaceChildren(text, ...(undo ? [" ", button] : []));
  }

  function filtersAnew() {
    const { state, live, about } = model, tokens = model.array("tokens");
    get("decided").value = state.decided;
    let sum = 0;
    for (const i of live.left) sum += tokens[i];
    get("left").textContent = `${number(live.left.length)} of ${number(about.num_rows)} rows left, ${number(sum)} tokens`;
    const count = model.numFilters();
    get("clear").hidden = count === 0;
    get("clear").textContent = `clear ${count === 1 ? "the filter" : `${count} filters`}`;
    const { keep, drop, notes, elsewhere } = decisions.counts(), others = elsewhere ? `; ${number(elsewhere)} about no row here` : "";
    get("decisions").textContent = `${number(keep)} keep, ${number(drop)} drop, ${number(notes)} notes${others}`;
    get("export").disabled = keep + drop + notes + elsewhere === 0;
    get("not-kept").hidden = decisions.canKeep;
  }

  // Views

  function openViews() {
    for (const button of get("views").querySelectorAll("button")) {
      button.addEventListener("click", () => model.set({ view: button.dataset.view }, { push: true }));
    }
    const anew = () => {
      for (const button of get("views").querySelectorAll("button")) {
        if (button.dataset.view === model.state.view) button.setAttribute("aria-current", "page");
        else button.removeAttribute("aria-current");
        get(`view-${button.dataset.view}`).hidden = button.dataset.view !== model.state.view;
      }
    };
    model.listen((is) => is("view") && anew());
    anew();
    about();
    get("skip").addEventListener("click", toGrid);
  }

  function about() {
    const { overview, figures } = model.about;
    const list = (pairs) => el("dl", { className: "columns" }, ...pairs.map(([name, value]) => el("div", {}, el("dt", {}, shown(name)), el("dd", {}, shown(value)))));
    const parts = [el("p", { className: "finding" }, shown(overview.finding))];
    if (overview.warnings.length) parts.push(el("h2", {}, "Warnings of this ranking"), el("ul", {}, ...overview.warnings.map((x) => el("li", {}, shown(x)))));
    parts.push(el("h2", {}, "Rows, data and models"), list(overview.summary));
    if (overview.reasons.length) parts.push(el("h2", {}, "Why rows have no rank"), list(overview.reasons));
    parts.push(el("h2", {}, "Figures of the ranking as given"), el("div", { className: "figures" }, ...figures.map(figure)));
    parts.push(el("h2", {}, "How rows were ranked and measured"), list(overview.settings));
    parts.push(el("h2", {}, "What the numbers mean"), list(Object.entries(overview.glossary)));
    parts.push(el("p", { className: "muted" }, `Written by hf-gateau ${model.about.version}. This page loads nothing from outside its folder.`));
    get("view-about").append(...parts);
  }

  function figure({ name, title, text }) {
    const image = el("img", { src: `data/${name}-light.svg`, alt: shown(text), loading: "lazy" });
    const dark = el("source", { srcset: `data/${name}-dark.svg`, media: "(prefers-color-scheme: dark)" });
    return el("figure", {}, el("figcaption", {}, shown(title)), el("picture", {}, dark, image), el("p", { className: "muted" }, shown(text)));
  }

  // Keys

  // The table is focused, also from another view. (The hash is the state, so no link may set it.)
  function toGrid(event) {
    event?.preventDefault();
    if (model.state.view !== "rows") model.set({ view: "rows" }, { push: true });
    get("grid").focus();
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target.closest?.("dialog") === null) {
      if (isTyping(event)) event.target.blur();
      else if (model.state.row !== null) row.close();
      return;
    }
    if (isTyping(event)) return;
    const at = table.current();
    const keys = {
      "/": () => get("search").focus(),
      "?": () => get("help").showModal(),
      k: () => row.toggle(at, "keep"),
      d: () => row.toggle(at, "drop"),
      n: () => model.state.row !== null && get("row-note").focus(),
      ".": () => table.step(1),
      ",": () => table.step(-1),
      g: () => toGrid(),
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  }

  async function start() {
    try {
      await model.open();
      document.title = get("title").textContent = shown(model.about.title);
      decisions.open();
      openViews();
      openRanking();
      openFilters();
      table.open();
      charts.open();
      row.open();
      compare.open();
      document.body.classList.remove("loading");
      requestAnimationFrame(() => performance.mark("gateau-table"));
      await model.openHeads();
      model.refresh(...(model.state.q || ["id", "instruction"].includes(model.state.sort) ? ["q"] : []), "decisions", "heads");
      get("help-open").addEventListener("click", () => get("help").showModal());
      addEventListener("keydown", onKey);
      document.body.dataset.ready = "true";
    } catch (error) {
      get("said").textContent = `The rows could not be read: ${error.message}. The folder must be whole, and the browser no older than 2023.`;
      throw error;
    }
  }

  start();
  return { command };
})();
