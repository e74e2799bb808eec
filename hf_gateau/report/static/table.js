"use strict";
// The table of the rows that are left: rows of one height, of which only those in sight are elements.

gateau.table = (() => {
  const { get, el, shown, number, isTyping } = gateau.dom;
  const { model, decisions } = gateau;
  const HEIGHT = 32, AROUND = 8; // pixels; rows above and below those in sight
  const HIDDEN = ["moved", "given_rank", "ppl_short", "ppl_long", "ppl_no_context", "cut_tokens", "own:gateau_note", "own:gateau_context_rule", "own:gateau_truncated"];
  const SIGNS = { keep: "✓ keep", drop: "✗ drop" };
  const MOVES = { enters: "enters", leaves: "leaves", in: "in", out: "" };
  let grid, body, header, specs = [], lines = [], active = 0, hidden = new Set();

  function shownColumns() {
    const mark = { name: "decision", label: "decided", kind: "mark", width: "5.2rem" };
    const move = { name: "move", label: "selected", kind: "move", width: "4.8rem" };
    const id = { name: "id", label: "id", kind: "text", width: "minmax(7rem, 11rem)" };
    const said = { name: "instruction", label: "instruction", kind: "text", width: "minmax(16rem, 1fr)" };
    const [rank, ...others] = model.columns();
    return [{ ...rank, width: "4.6rem" }, move, mark, id, ...others, said].map((spec) => ({ ...spec, width: spec.width || (spec.kind === "category" ? "8.5rem" : "6.5rem") }));
  }

  function open() {
    grid = get("grid");
    header = get("grid-header");
    body = get("grid-body");
    hidden = new Set(HIDDEN);
    chooser();
    grid.addEventListener("scroll", draw, { passive: true });
    new ResizeObserver(draw).observe(grid);
    grid.addEventListener("keydown", onKey);
    body.addEventListener("click", (event) => {
      const line = event.target.closest(".line");
      if (!line) return;
      active = Number(line.dataset.at);
      model.set({ row: model.live.left[active], segment: null }, { push: true });
    });
    model.listen((is) => {
      if (is("mode", "method", "hmp", "cas", "view")) columnsAnew();
      if (is("sort", "down", "q", "ranges", "values", "lasso", "move", "decided")) {
        grid.scrollTop = 0;
        active = 0;
      }
      if (is("row") && model.state.row !== null) goTo(model.live.left.indexOf(model.state.row));
      headerAnew();
      draw();
    });
    columnsAnew();
    headerAnew();
    draw();
    if (model.state.row !== null) goTo(model.live.left.indexOf(model.state.row));
  }

  // Which columns are shown, for the person to choose.
  function chooser() {
    const list = get("columns-list");
    for (const spec of shownColumns()) {
      const box = el("input", { type: "checkbox", checked: !hidden.has(spec.name), onchange: () => {
        hidden[box.checked ? "delete" : "add"](spec.name);
        columnsAnew();
        headerAnew();
        draw();
      } });
      list.append(el("label", {}, box, ` ${shown(spec.label)}`));
    }
  }

  function columnsAnew() {
    specs = shownColumns().filter((spec) => !hidden.has(spec.name));
    grid.style.setProperty("--columns", specs.map((spec) => spec.width).join(" "));
    grid.style.setProperty("--width", `${specs.reduce((sum, spec) => sum + parseFloat(spec.width.replace("minmax(", "")), 0)}rem`);
    grid.setAttribute("aria-colcount", specs.length);
    body.replaceChildren();
    lines = [];
  }

  function headerAnew() {
    const { sort, down } = model.state, focused = document.activeElement?.dataset?.column;
    header.replaceChildren(...specs.map((spec, i) => {
      const is = spec.name === sort;
      const cell = el("div", { role: "columnheader", "aria-colindex": i + 1, className: spec.kind === "number" ? "cell number" : "cell" });
      if (is) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      if (spec.kind === "move") return cell.append(spec.label), cell;
      const first = spec.kind === "number" && !["rank", "other_rank"].includes(spec.name); // high numbers are of interest
      const button = el("button", { type: "button", title: shown(spec.words || `Sort by ${spec.label}`),
        onclick: () => model.set({ sort: spec.name, down: is ? !down : first }) }, `${shown(spec.label)}${is ? (down ? " ▼" : " ▲") : ""}`);
      button.dataset.column = spec.name;
      cell.append(button);
      return cell;
    }));
    if (focused) [...header.querySelectorAll("button")].find((x) => x.dataset.column === focused)?.focus();
  }

  function cellText(spec, row) {
    if (spec.kind === "mark") {
      const { decision, note } = decisions.of(row);
      return `${SIGNS[decision] || ""}${note ? " ✎" : ""}`;
    }
    if (spec.kind === "move") return MOVES[model.moveOf(row)];
    if (spec.kind === "text") return shown(model.text(spec.name, row));
    const value = model.values(spec.name)[row];
    if (spec.kind === "category") return value ? shown(spec.values[value]) : "";
    if (model.isNone(spec, value)) return "–";
    return spec.name === "moved" && value > 0 ? `+${number(value)}` : number(value, spec.digits, spec.small);
  }

  // Each place has its own element, which goes to the place as many further on as there are elements: scrolling by a few rows
  // touches these rows alone.
  function draw(event) {
    const { left } = model.live, isScroll = event?.type === "scroll";
    const from = Math.max(0, Math.floor(grid.scrollTop / HEIGHT) - AROUND);
    const to = Math.min(left.length, Math.ceil((grid.scrollTop + grid.clientHeight) / HEIGHT) + AROUND);
    if (!isScroll) {
      grid.setAttribute("aria-rowcount", left.length + 1);
      body.style.height = `${left.length * HEIGHT}px`;
      get("empty").hidden = left.length > 0;
    }
    const wanted = Math.ceil(grid.clientHeight / HEIGHT) + 2 * AROUND + 2;
    if (lines.length < wanted) {
      lines.push(...Array.from({ length: wanted - lines.length }, newLine));
      body.replaceChildren(...lines);
      for (const line of lines) line.dataset.at = "";
    }
    const used = new Set();
    for (let at = from; at < to; at++) {
      const line = lines[at % lines.length];
      used.add(line);
      if (!isScroll || line.dataset.at !== String(at)) fill(line, at);
    }
    for (const line of lines) line.hidden = !used.has(line);
    if (active >= from && active < to) grid.setAttribute("aria-activedescendant", `line-${active}`);
    else grid.removeAttribute("aria-activedescendant");
  }

  function newLine() {
    return el("div", { role: "row", className: "line" }, ...specs.map((spec, i) =>
      el("div", { role: "gridcell", "aria-colindex": i + 1, className: spec.kind === "number" ? "cell number" : `cell ${spec.kind}` })));
  }

  function fill(line, at) {
    const row = model.live.left[at];
    line.style.transform = `translateY(${at * HEIGHT}px)`;
    line.dataset.at = at;
    line.id = `line-${at}`;
    line.setAttribute("aria-rowindex", at + 2);
    line.setAttribute("aria-selected", at === active);
    line.classList.toggle("open", row === model.state.row);
    line.dataset.move = model.moveOf(row);
    line.dataset.decision = decisions.of(row).decision;
    specs.forEach((spec, j) => {
      const text = cellText(spec, row), cell = line.children[j];
      if (cell.textContent !== text) cell.textContent = text;
    });
  }

  function goTo(at) {
    if (at < 0 || !model.live.left.length) return;
    active = Math.min(at, model.live.left.length - 1);
    const top = active * HEIGHT, height = grid.clientHeight - header.clientHeight;
    if (top < grid.scrollTop) grid.scrollTop = top;
    if (top + HEIGHT > grid.scrollTop + height) grid.scrollTop = top + HEIGHT - height;
    draw();
  }

  function onKey(event) {
    if (event.target !== grid) return;
    const page = Math.max(1, Math.floor(grid.clientHeight / HEIGHT) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in steps) goTo(Math.max(0, Math.min(model.live.left.length - 1, active + steps[event.key])));
    else if (event.key === "Enter" && model.live.left.length) model.set({ row: model.live.left[active], segment: null }, { push: true });
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") grid.scrollLeft += event.key === "ArrowRight" ? 80 : -80;
    else return;
    event.preventDefault();
  }

  // The row that a key speaks of: the one that is open, or the active line's.
  const current = () => model.state.row ?? model.live.left[active] ?? null;

  // Open the row so many lines further; from one that has left the table, whose place the next one has.
  function step(by) {
    const { left } = model.live, at = left.indexOf(model.state.row);
    const next = at < 0 ? active + Math.min(by, 0) : at + by;
    if (next >= 0 && next < left.length) model.set({ row: left[next], segment: null });
  }

  return { open, current, step, isTyping };
})();
