"use strict";
// Histograms that are brushed, and a scatter plot with a lasso, on canvases in the page's colours.

gateau.charts = (() => {
  const { get, el, shown, number } = gateau.dom;
  const { model } = gateau;
  const BINS = 40;

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    return { ink: colour("ink"), muted: colour("muted"), line: colour("line"), first: colour("first"), second: colour("second"), faint: colour("faint") };
  }

  // A canvas's context, in CSS pixels, cleared.
  function prepared(canvas) {
    const { clientWidth: width, clientHeight: height } = canvas, scale = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    return { context, width, height };
  }

  // Lowest and highest of the numbers that are there; of far outliers the 0.5% at each end do not count, and stand in the last bins.
  function domain(spec) {
    const x = model.values(spec.name), there = Float64Array.from(x).filter((value) => Number.isFinite(value) && !model.isNone(spec, value)).sort();
    if (!there.length) return null;
    const at = (share) => there[Math.min(there.length - 1, Math.floor(share * there.length))];
    let [low, high] = [there[0], there.at(-1)];
    const [inner, outer] = [at(0.005), at(0.995)];
    if (high - low > 3 * (outer - inner) && outer > inner) [low, high] = [inner, outer];
    return low < high ? [low, high] : [low - 0.5, low + 0.5];
  }

  function histogram(spec) {
    const name = shown(spec.label), id = `chart-${spec.name.replace(/\W/g, (x) => `-${x.charCodeAt(0).toString(16)}-`)}`;
    const canvas = el("canvas", { className: "bars", role: "img", "aria-label": `Histogram of ${name}` });
    const fields = ["least", "most"].map((which) => el("input", { type: "number", step: "any", "aria-label": `${which} ${name}`, placeholder: which, onchange: () => setRange() }));
    const clear = el("button", { type: "button", "aria-label": `Clear the filter by ${name}`, onclick: () => set(null) }, "clear");
    const root = el("div", { className: "chart", id }, el("h3", { title: shown(spec.words || "") }, name), canvas, el("div", { className: "limits" }, fields[0], "to", fields[1], clear));
    let limits = null, drag = null, told = null;

    function set(range) {
      const ranges = { ...model.state.ranges };
      if (range) ranges[spec.name] = range;
      else delete ranges[spec.name];
      model.set({ ranges });
    }

    function setRange() {
      const [low, high] = fields.map((field) => (field.value === "" ? null : Number(field.value)));
      set(low === null && high === null ? null : [low ?? -Infinity, high ?? Infinity]);
    }

    const valueAt = (event) => {
      const share = (event.clientX - canvas.getBoundingClientRect().left) / canvas.clientWidth;
      return Math.max(0, Math.min(1, share));
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (!limits) return;
      drag = { from: valueAt(event), to: null };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!drag) return;
      drag.to = valueAt(event);
      draw();
    });
    canvas.addEventListener("pointercancel", () => (drag = null));
    canvas.addEventListener("pointerup", () => {
      if (!drag) return;
      const { from, to } = drag;
      drag = null;
      if (to === null || Math.abs(from - to) < 0.01) return set(null);
      const [low, high] = limits, value = (share) => Number((low + share * (high - low)).toPrecision(6));
      const [a, b] = [Math.min(from, to), Math.max(from, to)];
      set([a < 0.01 ? -Infinity : value(a), b > 0.99 ? Infinity : value(b)]); // the ends take the outliers in
    });

    function draw() {
      limits = domain(spec);
      const { context, width, height } = prepared(canvas), colour = colours();
      const range = model.state.ranges[spec.name];
      fields.forEach((field, i) => {
        if (range !== told || document.activeElement !== field) field.value = range && Number.isFinite(range[i]) ? range[i] : "";
      });
      told = range;
      root.classList.toggle("filtered", Boolean(range));
      if (!limits) return;
      const [low, high] = limits, x = model.values(spec.name), mask = model.passing(spec.name);
      const all = new Float64Array(BINS), left = new Float64Array(BINS);
      for (let i = 0; i < x.length; i++) {
        if (model.isNone(spec, x[i])) continue;
        const bin = Math.max(0, Math.min(BINS - 1, Math.floor((BINS * (x[i] - low)) / (high - low))));
        all[bin]++;
        left[bin] += mask[i];
      }
      const most = Math.max(1, ...all), step = width / BINS, bottom = height - 14;
      const bar = (count, i, fill) => {
        const size = count && Math.max(1.5, (count / most) * (bottom - 2));
        context.fillStyle = fill;
        context.fillRect(i * step + 0.5, bottom - size, Math.max(1, step - 1), size);
      };
      all.forEach((count, i) => bar(count, i, colour.faint));
      left.forEach((count, i) => bar(count, i, colour.first));
      const place = (value) => Math.max(0, Math.min(width, ((value - low) / (high - low)) * width));
      const brush = drag && drag.to !== null ? [Math.min(drag.from, drag.to) * width, Math.max(drag.from, drag.to) * width] : range && range.map(place);
      if (brush) {
        context.strokeStyle = colour.second;
        context.lineWidth = 2;
        context.strokeRect(brush[0] + 1, 1, Math.max(2, brush[1] - brush[0] - 2), bottom - 1);
      }
      context.fillStyle = colour.muted;
      context.font = "11px system-ui, sans-serif";
      context.textBaseline = "bottom";
      context.textAlign = "left";
      context.fillText(number(low, spec.digits), 0, height);
      context.textAlign = "right";
      context.fillText(number(high, spec.digits), width, height);
      canvas.setAttribute("aria-label", `Histogram of ${name}: ${number(left.reduce((a, b) => a + b, 0))} rows are left by the other filters, from ${number(low, spec.digits)} to ${number(high, spec.digits)}`);
    }

    return { root, draw };
  }

  // A filter by the values of a column of few values.
  function choice(spec) {
    const list = el("div", { className: "choices" });
    const root = el("fieldset", { className: "chart" }, el("legend", {}, shown(spec.label)), list);
    const codes = model.values(spec.name), boxes = [];
    spec.values.forEach((value, code) => {
      if (!codes.includes(code)) return;
      const box = el("input", { type: "checkbox", onchange: set }), count = el("span", { className: "count" });
      boxes.push({ box, code, count });
      list.append(el("label", { title: shown(value) }, box, el("span", { className: "value" }, shown(value)), count));
    });

    function set() {
      const chosen = boxes.filter(({ box }) => box.checked).map(({ code }) => code), values = { ...model.state.values };
      if (chosen.length) values[spec.name] = chosen;
      else delete values[spec.name];
      model.set({ values });
    }

    function draw() {
      const chosen = model.state.values[spec.name] || [], mask = model.passing(spec.name), counts = new Map();
      for (let i = 0; i < mask.length; i++) if (mask[i]) counts.set(codes[i], (counts.get(codes[i]) || 0) + 1);
      for (const { box, code, count } of boxes) {
        box.checked = chosen.includes(code);
        count.textContent = number(counts.get(code) || 0);
      }
      root.classList.toggle("filtered", chosen.length > 0);
    }

    return { root, draw };
  }

  // A scatter plot of two columns. `options`: x and y give their names, `lasso` what a lasso does.
  function scatter(canvas, { x: nameX, y: nameY, onlasso, onpick, lasso }) {
    const LEFT = 64, BOTTOM = 34, PAD = 8;
    let path = null, places = null;

    const scaleOf = (spec) => domain(spec);
    function frame() {
      const { clientWidth: width, clientHeight: height } = canvas;
      const specs = [model.column(nameX()), model.column(nameY())], [dx, dy] = specs.map(scaleOf);
      if (!dx || !dy) return null;
      const toX = (value) => LEFT + ((value - dx[0]) / (dx[1] - dx[0])) * (width - LEFT - PAD);
      const toY = (value) => height - BOTTOM - ((value - dy[0]) / (dy[1] - dy[0])) * (height - BOTTOM - PAD);
      const backX = (at) => dx[0] + ((at - LEFT) / (width - LEFT - PAD)) * (dx[1] - dx[0]);
      const backY = (at) => dy[0] + ((height - BOTTOM - at) / (height - BOTTOM - PAD)) * (dy[1] - dy[0]);
      return { specs, dx, dy, toX, toY, backX, backY, width, height };
    }

    function draw() {
      const found = frame(), { context, width, height } = prepared(canvas), colour = colours();
      places = found;
      context.font = "12px system-ui, sans-serif";
      if (!found) return;
      const { specs, dx, dy, toX, toY } = found, [x, y] = specs.map((spec) => model.values(spec.name));
      context.strokeStyle = colour.line;
      context.strokeRect(LEFT, PAD, width - LEFT - PAD, height - BOTTOM - PAD);
      context.fillStyle = colour.muted;
      context.textBaseline = "top";
      for (const [i, align] of [[0, "left"], [1, "right"]]) {
        context.textAlign = align;
        context.fillText(number(dx[i], specs[0].digits), i ? width - PAD : LEFT, height - BOTTOM + 3);
        context.textAlign = "right";
        context.fillText(number(dy[i], specs[1].digits), LEFT - 4, i ? PAD : height - BOTTOM - 12);
      }
      context.fillStyle = colour.ink;
      context.textAlign = "center";
      context.fillText(shown(specs[0].label), (LEFT + width) / 2, height - 16);
      context.save();
      context.translate(12, (height - BOTTOM) / 2);
      context.rotate(-Math.PI / 2);
      context.fillText(shown(specs[1].label), 0, -6);
      context.restore();
      const mask = model.passing("lasso"), inside = model.passing(), size = x.length > 20000 ? 2 : 4;
      const clamp = (value, [low, high]) => Math.max(low, Math.min(high, value));
      let drawn = 0;
      for (const layer of ["others", "left", "kept"]) {
        context.fillStyle = layer === "others" ? colour.faint : layer === "left" ? colour.first : colour.second;
        for (let i = 0; i < x.length; i++) {
          if (!mask[i] || model.isNone(specs[0], x[i]) || model.isNone(specs[1], y[i])) continue;
          const of = !inside[i] ? "others" : model.isIn(i) ? "kept" : "left";
          if (of !== layer) continue;
          const [px, py] = [toX(clamp(x[i], dx)), toY(clamp(y[i], dy))];
          context.beginPath(); // the selected ones differ in shape too
          if (of === "kept") {
            context.moveTo(px, py - size);
            context.lineTo(px + size, py + size * 0.7);
            context.lineTo(px - size, py + size * 0.7);
          } else context.rect(px - size / 2, py - size / 2, size, size);
          context.fill();
          drawn++;
        }
      }
      const open = model.state.row;
      if (open !== null && Number.isFinite(x[open]) && Number.isFinite(y[open])) {
        context.strokeStyle = colour.ink;
        context.lineWidth = 2;
        context.beginPath();
        context.arc(toX(clamp(x[open], dx)), toY(clamp(y[open], dy)), 8, 0, 2 * Math.PI);
        context.stroke();
      }
      const shownLasso = path ? path : lasso?.()?.map((value, i) => (i % 2 ? toY(value) : toX(value)));
      if (shownLasso?.length > 3) {
        context.strokeStyle = colour.second;
        context.lineWidth = 2;
        context.beginPath();
        for (let i = 0; i < shownLasso.length; i += 2) context[i ? "lineTo" : "moveTo"](shownLasso[i], shownLasso[i + 1]);
        context.closePath();
        context.stroke();
      }
      canvas.setAttribute("aria-label", `Scatter plot of ${number(drawn)} rows: ${shown(specs[0].label)} across, ${shown(specs[1].label)} upwards; triangles are selected rows`);
    }

    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      path = at(event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!path) return;
      const [x, y] = at(event);
      if (Math.hypot(x - path.at(-2), y - path.at(-1)) < 4) return;
      path.push(x, y);
      draw();
    });
    canvas.addEventListener("pointercancel", () => (path = null));
    canvas.addEventListener("pointerup", (event) => {
      const drawn = path;
      path = null;
      if (!drawn || !places) return;
      if (drawn.length > 5) {
        const points = drawn.map((value, i) => Number((i % 2 ? places.backY(value) : places.backX(value)).toPrecision(5)));
        onlasso?.({ x: nameX(), y: nameY(), points });
      } else if (onpick) {
        const row = nearest(at(event));
        if (row !== null) onpick(row);
        else onlasso?.(null);
      }
      draw();
    });

    function nearest([px, py]) {
      const { specs, toX, toY } = places, [x, y] = specs.map((spec) => model.values(spec.name)), mask = model.passing();
      let best = null, least = 12;
      for (let i = 0; i < x.length; i++) {
        if (!mask[i]) continue;
        const distance = Math.hypot(toX(x[i]) - px, toY(y[i]) - py);
        if (distance < least) [best, least] = [i, distance];
      }
      return best;
    }

    new ResizeObserver(draw).observe(canvas);
    return { draw };
  }

  // The charts beside the table.
  function open() {
    const wanted = ["score", "need", "hmp", "cas", "context_tokens", "response_tokens"], all = model.columns();
    const charts = wanted.map((name) => all.find((x) => x.name === name)).filter(Boolean).map(histogram);
    charts.push(...all.filter((x) => x.kind === "category").map(choice));
    get("charts").append(...charts.map((chart) => chart.root));
    const others = all.filter((x) => x.kind === "number" && !wanted.includes(x.name)).map(histogram);
    get("more-charts").append(...others.map((chart) => chart.root));
    get("more").addEventListener("toggle", () => get("more").open && others.forEach((chart) => chart.draw()));
    const draw = () => {
      charts.forEach((chart) => chart.draw());
      if (get("more").open) others.forEach((chart) => chart.draw());
    };
    model.listen((is, changed) => changed.some((name) => !["sort", "down", ...model.QUIET].includes(name)) && draw());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    new ResizeObserver(draw).observe(get("charts"));
    draw();

    const choose = (id, name) => {
      const select = get(id);
      select.append(...all.filter((x) => x.kind === "number").map((x) => el("option", { value: x.name }, shown(x.label))));
      select.addEventListener("change", () => model.set({ [name]: select.value }));
      return () => (select.value = model.state[name]);
    };
    const shows = [choose("scatter-x", "x"), choose("scatter-y", "y")];
    const lasso = () => {
      const set = model.state.lasso;
      return set && set.x === model.state.x && set.y === model.state.y ? set.points : null;
    };
    const plot = scatter(get("scatter-canvas"), {
      x: () => model.state.x, y: () => model.state.y, lasso,
      onlasso: (found) => model.set({ lasso: found }), onpick: (row) => model.set({ row, segment: null }, { push: true }),
    });
    const drawPlot = () => {
      shows.forEach((show) => show());
      get("lasso-clear").hidden = !model.state.lasso;
      if (model.state.view === "scatter") plot.draw();
    };
    get("lasso-clear").addEventListener("click", () => model.set({ lasso: null }));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlot);
    model.listen(drawPlot);
    drawPlot();
  }

  return { open, scatter, prepared, colours };
})();
