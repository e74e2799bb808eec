"use strict";
// The ranking of this page against the one that the rows came with, or against another file's.

gateau.compare = (() => {
  const { get, el, shown, number } = gateau.dom;
  const { model, charts, ranking } = gateau;
  const MOST = 50, FRACTIONS = [0.1, 0.3, 0.5]; // rows that are listed; the paper's shares
  let plot;

  const against = () => (model.state.against === "other" && model.array("other_rank") ? "other_rank" : "given_rank");

  function open() {
    const select = get("against");
    select.append(el("option", { value: "given" }, "the ranking as given"));
    if (model.array("other_rank")) select.append(el("option", { value: "other" }, shown(model.about.other.b.name)));
    select.addEventListener("change", () => model.set({ against: select.value }));
    plot = charts.scatter(get("compare-canvas"), { x: () => "rank", y: against, onpick: (row) => model.set({ row, segment: null }, { push: true }) });
    model.listen(draw);
    draw();
  }

  // The rows that have a rank in both, and the place (1 for the best) of each among these by either ranking.
  function places(here, there) {
    const rows = [];
    for (let i = 0; i < here.length; i++) if (here[i] > 0 && there[i] > 0) rows.push(i);
    const of = (ranks) => {
      const order = Int32Array.from(rows, (_, i) => i).sort((x, y) => ranks[rows[x]] - ranks[rows[y]]);
      const found = new Int32Array(rows.length);
      order.forEach((at, place) => (found[at] = place + 1));
      return found;
    };
    return { rows, a: of(here), b: of(there) };
  }

  // Pairs of an order of which the larger comes first.
  function inversions(order) {
    if (order.length < 2) return 0;
    const half = order.length >> 1, left = order.slice(0, half), right = order.slice(half);
    let found = inversions(left) + inversions(right);
    for (let i = 0, j = 0, k = 0; k < order.length; k++) {
      if (j >= right.length || (i < left.length && left[i] <= right[j])) order[k] = left[i++];
      else (found += left.length - i), (order[k] = right[j++]);
    }
    return found;
  }

  // Kendall's correlation: the share of the pairs of rows that both have in the same order, minus that of the others.
  function kendall(a, b) {
    const n = a.length, order = new Int32Array(n);
    a.forEach((place, i) => (order[place - 1] = b[i]));
    return n > 1 ? 1 - (4 * inversions(order)) / (n * (n - 1)) : NaN;
  }

  function overlap(a, b, fraction) {
    const top = Math.max(1, ranking.round(fraction * a.length));
    let both = 0;
    for (let i = 0; i < a.length; i++) if (a[i] <= top && b[i] <= top) both++;
    return `${number(both)} of ${number(top)}, Jaccard ${number(both / (2 * top - both), 3)}`;
  }

  function draw() {
    if (model.state.view !== "compare") return;
    const isOther = against() === "other_rank";
    get("against").value = isOther ? "other" : "given";
    plot.draw();
    const here = model.live.ranks.rank, there = model.array(against()), { rows, a, b } = places(here, there);
    const facts = [["rows ranked in both", number(rows.length)]];
    if (rows.length) {
      facts.push(["Spearman's correlation", number(ranking.spearman(here, there).rho, 4)], ["Kendall's correlation", number(kendall(a, b), 4)]);
      for (const fraction of FRACTIONS) facts.push([`best ${100 * fraction}% of both`, overlap(a, b, fraction)]);
    }
    const pair = ([name, value]) => el("div", {}, el("dt", {}, shown(name)), el("dd", {}, shown(value)));
    get("compare-facts").replaceChildren(...facts.map(pair));
    const different = isOther ? Object.entries(model.about.other.different) : [];
    get("compare-settings").hidden = !different.length;
    get("compare-different").replaceChildren(...different.map(([name, side]) =>
      el("tr", {}, el("th", { scope: "row" }, shown(name)), el("td", {}, shown(side.a)), el("td", {}, shown(side.b)))));
    const inSight = new Set(model.live.left), order = [...rows.keys()].filter((i) => inSight.has(rows[i]) && a[i] !== b[i]);
    order.sort((x, y) => Math.abs(b[y] - a[y]) - Math.abs(b[x] - a[x]) || a[x] - a[y]);
    get("compare-rows").replaceChildren(...order.slice(0, MOST).map((i) => {
      const row = rows[i], name = shown(model.text("id", row)) || `row ${row + 1}`;
      const link = el("button", { type: "button", className: "link", onclick: () => model.set({ row, segment: null }, { push: true }) }, name);
      const cells = [a[i], b[i], b[i] - a[i]].map((x) => el("td", { className: "number" }, number(x)));
      return el("tr", {}, el("th", { scope: "row" }, link), ...cells, el("td", {}, shown(model.text("instruction", row))));
    }));
    get("compare-none").hidden = order.length > 0;
  }

  return { open };
})();
