"use strict";
// Ranking as hf_gateau/ranking/ does it, from what hf_gateau/report/variants.py has measured of every row. High means keep.

gateau.ranking = (() => {
  // numpy's order of adding, so that sums have the same last digit.
  function sum(x, start = 0, n = x.length) {
    if (n < 8) {
      let total = 0;
      for (let i = 0; i < n; i++) total += x[start + i];
      return total;
    }
    if (n > 128) {
      let half = n >> 1;
      half -= half % 8;
      return sum(x, start, half) + sum(x, start + half, n - half);
    }
    const r = Array.from(x.subarray(start, start + 8));
    let i = 8;
    for (; i < n - (n % 8); i += 8) for (let j = 0; j < 8; j++) r[j] += x[start + i + j];
    let total = r[0] + r[1] + (r[2] + r[3]) + (r[4] + r[5] + (r[6] + r[7]));
    for (; i < n; i++) total += x[start + i];
    return total;
  }

  const maximum = (x) => x.reduce((a, b) => Math.max(a, b), -Infinity);
  const minimum = (x) => x.reduce((a, b) => Math.min(a, b), Infinity);

  function softmax(x) {
    const top = maximum(x), exp = x.map((value) => Math.exp(value - top)), total = sum(Float64Array.from(exp).sort());
    return exp.map((value) => value / total);
  }

  function minMax(x) {
    const low = minimum(x), spread = maximum(x) - low;
    return x.map((value) => (spread > 0 ? (value - low) / spread : 0));
  }

  // From 0 (lowest) to 1; equal values get the mean of their ranks.
  function normalisedRank(x) {
    const n = x.length, out = new Float64Array(n).fill(0.5);
    if (n < 2) return out;
    const order = Uint32Array.from(x, (_, i) => i).sort((a, b) => x[a] - x[b]);
    for (let start = 0, end; start < n; start = end) {
      for (end = start + 1; end < n && x[order[end]] === x[order[start]]; ) end++;
      const rank = end - (end - start + 1) / 2;
      for (let i = start; i < end; i++) out[order[i]] = rank / (n - 1);
    }
    return out;
  }

  const NORMS = { softmax, rank: normalisedRank, "as is": (x) => x };
  const minus = (norm) => (short, long) => {
    const b = norm(long);
    return norm(short).map((value, i) => value - b[i]);
  };
  // HMP variants that look at all rows at once
  const OF_ALL_ROWS = { softmax: minus(softmax), minmax: minus(minMax), rank: minus(normalisedRank) };

  // The variants that settings stand for: the mode's, or those that are given.
  function partsOf(tables, settings) {
    const [hmp, cas, combine] = tables.modes[settings.mode] || [];
    return { hmp: settings.hmp || hmp, cas: settings.cas || cas, combine: settings.combine || combine };
  }

  function compact(values, rows) {
    const out = new Float64Array(rows.length);
    rows.forEach((row, i) => (out[i] = values[row]));
    return out;
  }

  // Rows, best first; equal scores by `tie`.
  function orderOf(rows, scores, tie) {
    return Int32Array.from(rows).sort((a, b) =>
      scores[a] > scores[b] ? -1 : scores[a] < scores[b] ? 1 : tie[a] - tie[b]);
  }

  // Settings: method, mode, hmp, cas, combine, alpha. Returns arrays with an entry a row, NaN or 0 where it has no rank, and
  // `order`, the rows that have one, best first.
  function rank(tables, array, numRows, settings) {
    const method = settings.method && settings.method !== "gateau" ? array(`method:${settings.method}`) : null;
    const parts = partsOf(tables, settings), terms = {};
    if (!method) {
      const isOfAll = parts.hmp in OF_ALL_ROWS;
      if (parts.hmp !== "none") terms.hmp = isOfAll ? array("ppl_short") : array(`hmp:${parts.hmp}`);
      if (isOfAll) terms.long = array("ppl_long");
      if (parts.cas !== "none") terms.cas = array(`cas:${parts.cas}`);
    } else terms.score = method;
    const needed = Object.values(terms), rows = []; // a term is null where the rows lack what it takes
    const canRank = needed.length > 0 && needed.every(Boolean);
    for (let i = 0; canRank && i < numRows; i++) if (needed.every((x) => !Number.isNaN(x[i]))) rows.push(i);
    const own = Object.fromEntries(Object.entries(canRank ? terms : {}).map(([name, values]) => [name, compact(values, rows)]));
    if (!method && canRank) {
      if (own.long) own.hmp = OF_ALL_ROWS[parts.hmp](own.hmp, own.long);
      const norms = tables.combine[parts.combine].norms;
      const [a, b] = [own.hmp && NORMS[norms[0]](own.hmp), own.cas && NORMS[norms[1]](own.cas)];
      own.score = a && b ? a.map((x, i) => settings.alpha * x + (1 - settings.alpha) * b[i]) : a || b || new Float64Array(0);
    }
    const spread = (values) => {
      const out = new Float64Array(numRows).fill(NaN);
      if (values) rows.forEach((row, i) => (out[row] = values[i]));
      return out;
    };
    const score = spread(own.score), isGiven = settings.method === "given";
    const order = isGiven ? orderOf(rows, score.map(() => 0), array("given_rank")) : orderOf(rows, score, array("tie")), ranks = new Int32Array(numRows);
    order.forEach((row, i) => (ranks[row] = i + 1));
    return { order, rank: ranks, score, hmp: spread(own.hmp), cas: spread(own.cas), parts };
  }

  // Python's `round`: halves go to the even neighbour.
  function round(x) {
    const low = Math.floor(x), rest = x - low;
    return rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low;
  }

  // Which rows a selection by `by` ("fraction", "top_k" or "max_tokens") keeps: 1 or 0 a row. Rows that a person keeps (1 in `decided`)
  // come first, also without a rank, and rows to drop (-1) never do. With a `stratum` a row (and no tokens to spend), the best of each
  // come next, until it has its share. `refusal`: why the command would not select so: "kept", the rows that a person keeps alone are
  // more than is asked for; "left", fewer are left (`numLeft`) than `top_k` asks for; "none", no row is selected; "uncertain", it goes
  // further down the order than the `numSafe` rows of which it is certain that none without segments belongs there.
  function select(order, by, value, tokens, decided, stratum, numSafe = Infinity) {
    const mask = new Uint8Array(tokens.length), hasTokens = by === "max_tokens";
    let room = by === "fraction" ? round(value * order.length) : value;
    const due = stratum && !hasTokens ? shares(order, stratum, room / Math.max(order.length, 1)) : null;
    const cost = (row) => (hasTokens ? tokens[row] : 1);
    if (decided) {
      decided.forEach((decision, row) => {
        if (decision !== 1) return;
        mask[row] = 1;
        room -= cost(row);
        if (due?.get(stratum[row])) due.set(stratum[row], due.get(stratum[row]) - 1);
      });
    }
    const isOver = room < 0, isFree = (row) => !decided || decided[row] === 0;
    for (const row of due ? order : []) {
      if (!isFree(row) || !due.get(stratum[row]) || room <= 0) continue;
      due.set(stratum[row], due.get(stratum[row]) - 1);
      mask[row] = 1;
      room--;
    }
    const numLeft = order.filter(isFree).length + (decided ? decided.filter((x) => x === 1).length : 0);
    for (const row of order) {
      if (mask[row] || !isFree(row)) continue;
      if ((room -= cost(row)) < 0) break;
      mask[row] = 1;
    }
    const isUncertain = order.slice(numSafe).some((row) => mask[row] && isFree(row));
    const refusal = by === "top_k" && value > numLeft ? "left" : isOver ? "kept" : !mask.includes(1) ? "none" : isUncertain ? "uncertain" : "";
    return { mask, refusal, numLeft };
  }

  // How many rows each stratum is sure of: its share of its own ranked rows, rounded down.
  function shares(order, stratum, share) {
    const sizes = new Map();
    for (const row of order) sizes.set(stratum[row], (sizes.get(stratum[row]) || 0) + 1);
    return new Map([...sizes].map(([name, size]) => [name, Math.floor(share * size + 1e-9)]));
  }

  // Spearman's correlation of two rankings, over the rows that have a rank (above 0) in both, and how many these are.
  function spearman(a, b) {
    const rows = [];
    for (let i = 0; i < a.length; i++) if (a[i] > 0 && b[i] > 0) rows.push(i);
    const n = rows.length, [x, y] = [a, b].map((ranks) => normalisedRank(compact(ranks, rows)));
    if (n < 2) return { rho: NaN, n };
    let xy = 0, xx = 0, yy = 0;
    for (let i = 0; i < n; i++) (xy += (x[i] - 0.5) * (y[i] - 0.5)), (xx += (x[i] - 0.5) ** 2), (yy += (y[i] - 0.5) ** 2);
    return { rho: xy / Math.sqrt(xx * yy), n };
  }

  return { rank, partsOf, round, select, spearman, orderOf, softmax, minMax, normalisedRank, sum };
})();
