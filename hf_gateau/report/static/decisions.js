"use strict";
// What a person decides: keep or drop a row, with a note; kept in this browser for these rows, and taken along as CSV.

gateau.decisions = (() => {
  const { el } = gateau.dom;
  const { csv } = gateau;
  const NONE = Object.freeze({ decision: "", note: "" });
  const COLUMNS = ["gateau_key", "decision", "note"];
  const DECISIONS = ["", "keep", "drop"];
  // Of a row's key, SETTINGS:ROW, the part after the colon, which another measuring leaves as it is -> key, decision, note
  let decided = new Map(), kept = null, canKeep = true, known = { rows: [], all: new Set() };

  const place = () => `gateau-decisions:${gateau.model.about.digest}`;
  const contentOf = (key) => key.slice(key.lastIndexOf(":") + 1);
  const keyOf = (row) => gateau.model.heads?.key[row] ?? null;

  // That part of the key of every row, null for one without a key, and all of these; none before the keys are there.
  function contents() {
    if (!known.rows.length && gateau.model.heads) {
      const rows = gateau.model.heads.key.map((key) => key && contentOf(key));
      known = { rows, all: new Set(rows) };
    }
    return known;
  }

  function open() {
    read();
    addEventListener("storage", ({ key }) => {
      if (key !== null && key !== place()) return;
      read();
      gateau.model.refresh("decisions", "notes");
    });
  }

  // What the browser keeps is what is decided, as long as it keeps anything: other tabs of this page decide too.
  function read() {
    let text;
    try {
      text = localStorage.getItem(place());
    } catch {
      canKeep = false;
    }
    if (!canKeep || text === kept) return;
    kept = text;
    decided = new Map(stored(text));
  }

  // Entries of ours; whatever else stands there is passed over.
  function stored(text) {
    let found;
    try {
      found = JSON.parse(text);
    } catch {
      return [];
    }
    const isOurs = ([content, { key, decision, note }]) =>
      typeof key === "string" && content === contentOf(key) && DECISIONS.includes(decision) && typeof note === "string" && (decision || note);
    return (Array.isArray(found) ? found : []).map((x) => [x?.[0], { ...NONE, ...x?.[1] }]).filter(isOurs);
  }

  // Change what is decided, content -> key and what becomes of `decision` or `note`. Returns a function that takes back of this what
  // nobody has changed since.
  function change(changes) {
    read();
    const before = new Map([...changes.keys()].map((content) => [content, decided.get(content) || NONE]));
    put(changes);
    return () => {
      read();
      put(new Map([...changes].map(([content, { key, ...done }]) => {
        const now = decided.get(content) || NONE, undone = Object.keys(done).filter((name) => now[name] === done[name]);
        return [content, { key, ...Object.fromEntries(undone.map((name) => [name, before.get(content)[name]])) }];
      })));
    };
  }

  function put(changes) {
    let isNotes = true;
    for (const [content, one] of changes) {
      const next = { ...NONE, ...decided.get(content), ...one };
      if (next.decision || next.note) decided.set(content, next);
      else decided.delete(content);
      isNotes &&= !("decision" in one);
    }
    try {
      const text = JSON.stringify([...decided]);
      localStorage.setItem(place(), text);
      kept = text;
    } catch {
      canKeep = false;
    }
    gateau.model.refresh(isNotes ? "notes" : "decisions");
  }

  function of(row) {
    const key = keyOf(row);
    return (key !== null && decided.get(contentOf(key))) || NONE;
  }

  // 1 for a row to keep, -1 for one to drop, 0 for any other; null where nothing is decided.
  function ofAll() {
    if (!decided.size || !gateau.model.heads) return null;
    const signs = { keep: 1, drop: -1 };
    return Int8Array.from(contents().rows, (content) => signs[decided.get(content)?.decision] || 0);
  }

  // Decide on rows; those without a key cannot be told apart later, and are passed over. Returns how many were decided on, and what
  // takes it back.
  function decide(rows, what) {
    const keys = Array.from(rows, keyOf).filter((key) => key !== null);
    return { done: keys.length, undo: change(new Map(keys.map((key) => [contentOf(key), { key, ...what }]))) };
  }

  // How many rows are decided on, copies of one row each; and how many decisions and notes are about no row here.
  function counts() {
    const found = { keep: 0, drop: 0, notes: 0, elsewhere: numElsewhere(decided.keys()) };
    for (const content of contents().rows) {
      const { decision, note } = decided.get(content) || NONE;
      if (decision) found[decision]++;
      if (note) found.notes++;
    }
    return found;
  }

  function numElsewhere(of) {
    const here = contents().all;
    return here.size ? [...of].filter((content) => !here.has(content)).length : 0;
  }

  const written = () => csv.written([COLUMNS, ...[...decided.values()].map((x) => [x.key, x.decision, x.note])]);

  // Take what a file says over what is decided already, and leave what it says nothing of; as hf_gateau/ranking/decisions.py reads
  // it. Returns of how many contents it speaks, how many of them are about no row here, and what takes it back; throws an Error
  // that says what is wrong.
  function take(bytes, file) {
    const found = new Map(), lines = new Map();
    for (const [line, row] of csv.numberedRows(bytes, file, COLUMNS.slice(0, 2))) {
      const key = row.get("gateau_key").trim(), decision = row.get("decision").trim().toLowerCase(), note = row.get("note") || "";
      if (!key && [...row.values()].some((value) => value.trim())) throw new Error(`Line ${line} has no gateau_key`);
      if (!DECISIONS.includes(decision)) throw new Error(`Line ${line}: the decision is ${decision}, and not keep or drop`);
      const content = contentOf(key), earlier = found.get(content);
      if (decision && earlier?.decision && earlier.decision !== decision) {
        throw new Error(`Line ${line}: ${key} is to ${decision} here, and line ${lines.get(content)} says ${earlier.decision} of a row with the same content`);
      }
      if (decision && !lines.has(content)) lines.set(content, line);
      if (decision || note) found.set(content, { ...earlier, key, ...(decision && { decision }), ...(note && { note }) });
    }
    return { done: found.size, elsewhere: numElsewhere(found.keys()), undo: change(found) };
  }

  function save() {
    const url = URL.createObjectURL(new Blob([written()], { type: "text/csv" }));
    const link = el("a", { href: url, download: "decisions.csv" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  return { open, of, ofAll, decide, counts, csv: written, take, save, keyOf, get canKeep() { return canKeep; } };
})();
