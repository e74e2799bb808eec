"use strict";
// Elements, numbers and texts as they are shown. No text of a row is ever markup: all of it goes through text nodes.

gateau.dom = (() => {
  const get = (id) => document.getElementById(id);

  // An element with properties ("aria-" and others with a dash are attributes), listeners (on...) and children.
  function el(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (value === null || value === undefined) continue;
      if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element[name] = value;
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  const CONTROL = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/g;
  const TURNING = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
  const LONE = /\p{Cs}/gu;

  // Text with signs for what a page would obey instead of showing: control characters, marks that turn the direction of writing,
  // halves of characters.
  function shown(text) {
    return text
      .replace(/\r\n?/g, "\n")
      .replace(CONTROL, (x) => (x < " " ? String.fromCharCode(0x2400 + x.charCodeAt(0)) : x === "\x7f" ? "\u2421" : "\ufffd"))
      .replace(TURNING, "\ufffd")
      .replace(LONE, "\ufffd");
  }

  const formats = new Map();
  // A number with so many digits after the point; a dash for none. `small`: of what is less than these digits show, two digits.
  function number(value, digits = 0, small = false) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (small && value !== 0 && Math.abs(value) < 10 ** (1 - digits)) return value.toExponential(2);
    if (!formats.has(digits)) {
      formats.set(digits, new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
    }
    return formats.get(digits).format(value);
  }

  // Whether a key that is pressed there means a letter, and not one of the page's keys.
  const isTyping = (event) => event.target.closest?.("input:not([type=checkbox], [type=range], [type=file]), textarea, select, dialog") !== null;

  return { get, el, shown, number, isTyping };
})();
