"use strict";
// CSV files read as hf_gateau/files/csv_files.py reads them: what one of the two refuses, the other refuses, with the same line.

gateau.csv = (() => {
  const SEPARATORS = [",", ";", "\t", "|"]; // of files that are called .csv; the first that parts the first line

  function decoded(bytes) {
    const mark = bytes[0] * 256 + bytes[1], encoding = { 0xfffe: "utf-16le", 0xfeff: "utf-16be" }[mark] || "utf-8";
    const decoder = new TextDecoder(encoding, { fatal: true });
    let text = "", line = 1;
    for (let start = 0, end; start < bytes.length; start = end, line++) {
      end = bytes.indexOf(10, start) + 1 || bytes.length;
      try {
        text += decoder.decode(bytes.subarray(start, end), { stream: end < bytes.length });
      } catch {
        throw new Error(`Line ${line} is no text in ${encoding.toUpperCase()}`);
      }
    }
    return text;
  }

  // [line that it begins in, cells] of every row; an empty line is none. A quotation mark that opens a cell must close it.
  function* split(text, separator) {
    const cell = new RegExp(`("[^"]*(?:""[^"]*)*"|(?!")[^${separator}\\r\\n]*)([${separator}]|\\r\\n?|\\n|$)`, "y");
    let line = 1, begins = 1, cells = [];
    while (cell.lastIndex < text.length || cells.length) {
      const found = cell.exec(text);
      if (!found) throw new Error(`Line ${begins} cannot be read as CSV: a quotation mark opens a cell and does not close it`);
      const [all, content, end] = found;
      line += all.match(/\r\n?|\n/g)?.length || 0;
      if (all !== end || end === separator || cells.length) cells.push(content.startsWith('"') ? content.slice(1, -1).replaceAll('""', '"') : content);
      if (end === separator) continue;
      if (cells.length) yield [begins, cells];
      [begins, cells] = [line, []];
    }
  }

  function separatorOf(text, separators) {
    const [, first] = text.match(/^[\r\n]*((?:"[^"]*"|[^"\r\n])*)/), bare = first.replace(/"[^"]*"/g, "");
    return separators.find((separator) => bare.includes(separator)) || separators[0];
  }

  // [line, Map of column -> cell] of every row after the first, which names the columns. Throws an Error that says what is wrong.
  function* numberedRows(bytes, file, needed) {
    const kind = file.toLowerCase().match(/\.(csv|tsv)$/)?.[1], text = decoded(bytes);
    if (!kind) throw new Error(`${file} is no .csv or .tsv file`);
    const separator = separatorOf(text, kind === "csv" ? SEPARATORS : ["\t"]);
    let names = null;
    for (const [line, cells] of split(text, separator)) {
      if (!names) {
        names = cells;
        const twice = names.find((name, i) => names.indexOf(name) < i), missing = needed.find((name) => !names.includes(name));
        if (twice !== undefined) throw new Error(`The file has more than one column ${twice}`);
        if (missing) throw new Error(`The file has no column ${missing}; its first line names the columns`);
        continue;
      }
      if (cells.length > names.length) throw new Error(`Line ${line} has ${cells.length} cells, and there are ${names.length} columns`);
      yield [line, new Map(names.map((name, i) => [name, cells[i] ?? ""]))];
    }
    if (!names) throw new Error("The file is empty; its first line names the columns");
  }

  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

  return { numberedRows, written: (rows) => rows.map((cells) => `${cells.map(quoted).join(",")}\r\n`).join("") };
})();
