"use strict";
// What a person decides: keep or drop a row, with a note; kept in this browser for these rows, and taken along as CSV.

gateau.decisions = (() => {
  const { el } = gateau.dom;
  const NONE = Object.freeze({ decision: "", note: "" });
  const HEADER = "gateau_key,decision,note";
  // Of a row's key, SETTINGS:ROW, the part after the colon, which another measuring leaves as it is -> key, decision, note
  let decided = new Map(), before = null, canKeep = true;

  const place = () => `gateau-decisions:${gateau.model.about.digest}`;
  const contentOf = (key) => key.slice(key.lastIndexOf(":") + 1);
  const keyOf = (row) => gateau.model.heads?.key[row] ?? null;

  function read() {
    try {
      for (const [content, value] of JSON.parse(localStorage.getItem(place()) || "[]")) decided.set(content, { ...NONE, ...value });
    } catch {
      canKeep = false; // a browser that keeps nothing, or what is no list of ours
    }
  }

  function keep(changed = "decisions") {
    try {
      localStorage.setItem(place(), JSON.stringify([...decided]));
    } catch {
      canKeep = false;
    }
    gateau.model.refresh(changed);
  }

  function of(row) {
    const key = keyOf(row);
    return (key !== null && decided.get(contentOf(key))) || NONE;
  }

  // 1 for a row to keep, -1 for one to drop, 0 for any other; null where nothing is decided.
  function ofAll() {
    if (!decided.size || !gateau.model.heads) return null;
    const signs = { keep: 1, drop: -1 };
    return Int8Array.from(gateau.model.heads.key, (_, row) => signs[of(row).decision] || 0);
  }

  // Decide on rows; those without a key cannot be told apart later, and are passed over. Returns how many were decided on.
  function decide(rows, change) {
    let done = 0;
    before = new Map(decided);
    for (const row of rows) {
      const key = keyOf(row);
      if (key === null) continue;
      const next = { ...NONE, key, ...decided.get(contentOf(key)), ...change };
      if (next.decision || next.note) decided.set(contentOf(key), next);
      else decided.delete(contentOf(key));
      done++;
    }
    keep("decision" in change ? "decisions" : "notes");
    return done;
  }

  // Take the last decision back, of however many rows.
  function undo() {
    if (before) [decided, before] = [before, null];
    keep();
  }

  function counts() {
    const found = { keep: 0, drop: 0, notes: 0 };
    for (const { decision, note } of decided.values()) {
      if (decision) found[decision]++;
      if (note) found.notes++;
    }
    return found;
  }

  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

  function csv() {
    const rows = [...decided.values()].map(({ key, decision, note }) => [key, decision, note].map(quoted).join(","));
    return [HEADER, ...rows, ""].join("\r\n");
  }

  // The cells of CSV text, as RFC 4180 has it.
  function parsed(text) {
    const rows = [[]];
    for (const [, cell, end] of text.replace(/^\ufeff/, "").matchAll(/("(?:[^"]|"")*"|[^,\r\n]*)(,|\r?\n|$)/g)) {
      rows.at(-1).push(cell.startsWith('"') ? cell.slice(1, -1).replaceAll('""', '"') : cell);
      if (end === "") break;
      if (end !== ",") rows.push([]);
    }
    return rows.filter((row) => row.length > 1 || row[0]);
  }

  // Take what a file says, over what is decided already. Returns how many rows it speaks of; throws an Error that says what is wrong.
  function take(text) {
    const [header, ...rows] = parsed(text);
    const places = HEADER.split(",").map((name) => (header || []).indexOf(name));
    if (places[0] < 0 || places[1] < 0) throw new Error(`The file's first line is not ${HEADER}`);
    for (const row of rows) {
      const [key, decision, note] = places.map((at) => row[at] ?? "");
      if (!["", "keep", "drop"].includes(decision)) throw new Error(`${key}: the decision is ${decision}, and not keep or drop`);
    }
    before = new Map(decided);
    for (const row of rows) {
      const [key, decision, note] = places.map((at) => row[at] ?? "");
      decided.set(contentOf(key), { key, decision, note });
    }
    keep();
    return rows.length;
  }

  function save() {
    const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    const link = el("a", { href: url, download: "decisions.csv" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  return { read, of, ofAll, decide, undo, counts, csv, take, save, keyOf, get canKeep() { return canKeep; } };
})();
