"use strict";
// Reads the files of data/: scripts that hand over one string each. See hf_gateau/report/pieces.py, which writes them.

const gateau = {};

gateau.data = (() => {
  const ESCAPE = 1, FLIP = 0x8000, MOST_KEPT = 6; // pieces in memory
  const arrived = new Map(), kept = new Map();

  // What a file of data calls.
  gateau.piece = (name, numBytes, text) => arrived.set(name, [numBytes, text]);

  function bytesOf(numBytes, text) {
    const units = new Uint16Array(text.length);
    let n = 0;
    for (let i = 0; i < text.length; i++) {
      const unit = text.charCodeAt(i);
      units[n++] = unit === ESCAPE ? text.charCodeAt(++i) ^ FLIP : unit;
    }
    return new Uint8Array(units.buffer, 0, numBytes);
  }

  async function inflated(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  const TYPES = { f8: Float64Array, i4: Int32Array, i2: Int16Array };

  // Numbers whose first bytes stand side by side, then all second ones, and so on.
  function numbersOf(bytes, [type, at, length]) {
    const numbers = new TYPES[type](length), size = numbers.BYTES_PER_ELEMENT;
    const out = new Uint8Array(numbers.buffer);
    for (let byte = 0; byte < size; byte++) {
      const start = at + byte * length;
      for (let i = 0; i < length; i++) out[i * size + byte] = bytes[start + i];
    }
    return numbers;
  }

  function unpacked(bytes) {
    const length = new DataView(bytes.buffer).getUint32(0, true), start = 4 + length;
    const { content, arrays } = JSON.parse(new TextDecoder().decode(bytes.subarray(4, start)));
    const places = new Map(Object.entries(arrays));
    const body = bytes.subarray(start);
    return { content, names: [...places.keys()], array: (name) => (places.has(name) ? numbersOf(body, places.get(name)) : null) };
  }

  function script(name) {
    return new Promise((resolve, reject) => {
      const element = document.createElement("script");
      element.src = `data/${name}.js`;
      element.onload = () => (element.remove(), resolve());
      element.onerror = () => (element.remove(), reject(new Error(`data/${name}.js is missing, or cannot be read`)));
      document.head.append(element);
    });
  }

  async function read(name) {
    await script(name);
    const [numBytes, text] = arrived.get(name);
    arrived.delete(name);
    return unpacked(await inflated(bytesOf(numBytes, text)));
  }

  // A piece: its `content`, the `names` of its arrays, and `array(name)`, null where there is none.
  function load(name) {
    const found = kept.get(name) || read(name);
    kept.delete(name);
    kept.set(name, found); // the last one used is the last one to go
    if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
    found.catch(() => kept.delete(name));
    return found;
  }

  return { load };
})();
