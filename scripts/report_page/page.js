"use strict";
// Draws the hearts of the page: decoded pictures on canvases, lines over them, numbers beside them. No library, no network.
(() => {
  const data = JSON.parse(document.getElementById("hearts-data").textContent);
  const PERIOD = 1200; // ms of a beat
  const { weak, strong, opacity, brighter, darker } = data.difference;
  const COLORS = data.colors.map((color) => `rgb(${color.join(" ")})`);
  const STRUCTURES = ["endocardium", "epicardium", "RV"];
  const SCAN = "scan";
  const BEFORE = "before";
  const AFTER = "after";

  const state = {
    subject: 0,
    kind: data.kinds[0].key,
    attribute: null,
    amount: 0,
    shown: AFTER,
    slice: data.first,
    outlines: true,
    difference: false,
    started: null, // when the cine began; null while it stands
  };
  const at = (id) => document.getElementById(id);
  const panes = [];
  const rows = [];
  const beats = data.phases.length > 1;

  // The heart that is asked for

  const subject = () => data.subjects[state.subject];
  const offers = (name) => subject().requests[state.kind][name];

  function requested() {
    const found = state.attribute && offers(state.attribute).find((each) => each.amount === state.amount);
    return found || subject().before;
  }

  function current() {
    return { [SCAN]: subject().scan, [BEFORE]: subject().before, [AFTER]: requested() }[state.shown];
  }

  // Text

  const minus = (text) => text.replace("-", "−");
  const whole = (value) => (value == null ? "–" : minus(String(Math.round(value) || 0)));
  const signed = (value) => (Math.round(value) > 0 ? "+" : "") + whole(value);
  // Of the numbers that are shown, so that a reader who subtracts them finds it.
  const change = (value, before) => (value == null || before == null ? "" : signed(Math.round(value) - Math.round(before)));

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // Pictures: each is a row of slices per phase

  const pictures = new Map();
  const differences = new Map();
  const legend = {}; // entries by the choice that draws what they explain

  function picture(frame) {
    if (!pictures.has(frame)) {
      const image = new Image();
      image.onload = draw;
      image.src = frame.picture;
      pictures.set(frame, image);
    }
    const image = pictures.get(frame);
    return image.complete && image.naturalWidth ? image : null;
  }

  function pixels(image) {
    const canvas = element("canvas", { width: image.naturalWidth, height: image.naturalHeight });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return { canvas, context, values: context.getImageData(0, 0, canvas.width, canvas.height) };
  }

  function difference(frame) {
    const [after, before] = [picture(frame), picture(subject().before)];
    if (!after || !before) return null;
    if (!differences.has(frame)) {
      const { canvas, context, values } = pixels(after);
      const other = pixels(before).values.data;
      for (let i = 0; i < values.data.length; i += 4) {
        const changed = values.data[i] - other[i];
        values.data.set(changed > 0 ? brighter : darker, i);
        values.data[i + 3] = opacity * Math.min(Math.max((Math.abs(changed) - weak) / (strong - weak), 0), 1);
      }
      context.putImageData(values, 0, 0);
      differences.set(frame, canvas);
    }
    return differences.get(frame);
  }

  // Drawing

  function sources() {
    const before = state.shown === SCAN ? subject().scan : subject().before;
    const position = state.started === null ? 0 : 0.5 - 0.5 * Math.cos((2 * Math.PI * (performance.now() - state.started)) / PERIOD);
    if (beats && state.started === null) {
      return data.phases.map((phase, index) => ({ title: `${phase}, ${frameName(current())}`, frame: current(), position: index }));
    }
    return [before, requested()].map((frame) => ({ title: frameName(frame), frame, position }));
  }

  function frameName(frame) {
    if (frame === subject().scan) return "scan";
    if (frame === subject().before) return "reconstruction";
    const { unit } = data.attributes.find((each) => each.name === state.attribute);
    return `${state.attribute} ${signed(state.amount)} ${unit}`;
  }

  function drawTile(context, source, slice, box) {
    const [height, width] = subject().size;
    const place = (image, phase, opacity) => {
      if (!image || !opacity) return;
      context.globalAlpha = opacity;
      context.drawImage(image, slice * width, phase * height, width, height, box.x, box.y, box.width, box.height);
      context.globalAlpha = 1;
    };
    const [phase, next] = [Math.floor(source.position), Math.ceil(source.position)];
    const share = source.position - phase;
    place(picture(source.frame), phase, 1);
    place(picture(source.frame), next, share);
    if (state.difference && isRequest(source.frame)) {
      place(difference(source.frame), phase, 1 - share);
      place(difference(source.frame), next, share);
    }
    if (state.outlines) drawOutlines(context, source, Math.round(source.position), slice, box);
  }

  const isRequest = (frame) => frame !== subject().scan && frame !== subject().before;

  function drawOutlines(context, source, phase, slice, box) {
    const scale = box.width / subject().size[1] / data.fineness;
    const width = Math.max(box.width / 170, 1.1) / scale;
    const strokes = (frame, colors, dash) =>
      (frame.lines[phase] || [])[slice]?.forEach((path, structure) => {
        context.setLineDash(dash);
        for (const [style, wide] of [["rgb(0 0 0 / 55%)", 2.2 * width], [colors[structure], width]]) {
          context.strokeStyle = style;
          context.lineWidth = wide;
          context.stroke(new Path2D(path));
        }
      });
    context.save();
    context.beginPath();
    context.rect(box.x, box.y, box.width, box.height);
    context.clip();
    context.translate(box.x, box.y);
    context.scale(scale, scale);
    if (isRequest(source.frame)) strokes(subject().before, STRUCTURES.map(() => "white"), [3 * width, 3 * width]);
    strokes(source.frame, COLORS, []);
    context.restore();
  }

  function fit(canvas, aspect) {
    const width = Math.round(canvas.clientWidth * devicePixelRatio);
    const height = Math.round(width * aspect);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.clearRect(0, 0, width, height);
    return context;
  }

  const columns = () => Math.min(data.slices.length, 4);

  function tiles(canvas) {
    const width = canvas.width / columns();
    const height = width * (subject().size[0] / subject().size[1]);
    return data.slices.map((_, slice) => ({
      x: (slice % columns()) * width,
      y: Math.floor(slice / columns()) * height,
      width,
      height,
    }));
  }

  function draw() {
    const aspect = subject().size[0] / subject().size[1];
    sources().forEach((source, index) => {
      const pane = panes[index];
      const text = `${source.title}, ${data.slices[state.slice]}`;
      pane.caption.textContent = source.title;
      const context = fit(pane.canvas, aspect);
      drawTile(context, source, state.slice, { x: 0, y: 0, width: pane.canvas.width, height: pane.canvas.height });
      pane.canvas.setAttribute("aria-label", text);
      if (pane.all) drawAll(pane, source, aspect);
    });
  }

  function drawAll(pane, source, aspect) {
    const context = fit(pane.all, (aspect * Math.ceil(data.slices.length / columns())) / columns());
    tiles(pane.all).forEach((box, slice) => drawTile(context, source, slice, box));
    const box = tiles(pane.all)[state.slice];
    context.strokeStyle = "white";
    context.lineWidth = 2 * devicePixelRatio;
    context.strokeRect(box.x + 1, box.y + 1, box.width - 2, box.height - 2);
    pane.all.setAttribute("aria-label", `All slices: ${source.title}`);
  }

  function beat() {
    if (state.started === null) return;
    draw();
    requestAnimationFrame(beat);
  }

  // Numbers

  function show() {
    const [frame, before, own] = [current(), subject().before, subject()];
    rows.forEach((row, index) => {
      const values = {
        mask: [own.masks[index], null],
        asked: frame === own.scan ? [null, null] : [frame.asked[index], before.asked[index]],
        measured: [frame.measured[index], frame === own.scan ? null : before.measured[index]],
        own: frame === own.scan ? [null, null] : [frame.own[index], before.own[index]],
      };
      for (const [key, cell] of Object.entries(row.cells)) {
        const [value, reference] = values[key];
        cell.number.textContent = whole(value);
        cell.change.textContent = isRequest(frame) ? change(value, reference) : "";
      }
      row.element.classList.toggle("asked", isRequest(frame) && row.name === state.attribute);
      if (row.slider) showSlider(row);
    });
    draw();
  }

  function showSlider(row) {
    const amount = row.name === state.attribute ? state.amount : 0;
    const allowed = [0, ...offers(row.name).map((each) => each.amount)].map((each) => data.changes.indexOf(each));
    const place = (index) => `${(100 * index) / (data.changes.length - 1)}%`;
    const [low, high] = [place(Math.min(...allowed)), place(Math.max(...allowed))];
    row.slider.value = data.changes.indexOf(amount);
    row.slider.disabled = allowed.length < 2;
    row.slider.style.setProperty(
      "--track",
      `linear-gradient(to right, var(--line) ${low}, #8fb6dd ${low}, #8fb6dd ${high}, var(--line) ${high})`
    );
    row.slider.setAttribute("aria-valuetext", `${signed(amount)} ${row.unit}`);
  }

  function ask(row) {
    const wanted = data.changes[row.slider.value];
    const allowed = [0, ...offers(row.name).map((each) => each.amount)];
    const near = (a, b) => (Math.abs(a - wanted) <= Math.abs(b - wanted) ? a : b);
    Object.assign(state, { attribute: row.name, amount: allowed.reduce(near), shown: AFTER });
    document.querySelector('input[name="shown"][value="after"]').checked = true;
    show();
  }

  function tell(row) {
    const values = Object.values(row.cells).map((cell) => `${cell.label} ${cell.number.textContent}`);
    at("status").textContent = `${row.name}, ${row.unit}: ${values.join(", ")}`;
  }

  function chooseSubject(index) {
    Object.assign(state, { subject: index, attribute: null, amount: 0 });
    const { notes, out_of_range: unusual } = subject();
    at("notes").replaceChildren(...notes.map((text, row) => element("p", { className: unusual && row === 0 ? "warning" : "note", textContent: text })));
    preload();
    show();
  }

  function chooseKind(kind) {
    state.kind = kind;
    at("kind-note").textContent = data.kinds.find((each) => each.key === kind).note;
    if (state.attribute && !offers(state.attribute).some((each) => each.amount === state.amount)) state.amount = 0;
    preload();
    show();
  }

  function preload() {
    [subject().before, subject().scan, ...Object.values(subject().requests[state.kind]).flat()].forEach(picture);
  }

  function chooseSlice(slice) {
    state.slice = slice;
    at("slice").value = slice;
    at("slice-name").textContent = data.slices[slice];
    at("slice").setAttribute("aria-valuetext", data.slices[slice]);
    draw();
  }

  function play() {
    state.started = state.started === null ? performance.now() : null;
    at("play").setAttribute("aria-pressed", String(state.started !== null));
    at("play").textContent = state.started === null ? "Play" : "Stop";
    draw();
    beat();
  }

  // Building

  function radios(group, name, entries, choose) {
    entries.forEach(([value, text], index) => {
      const input = element("input", { type: "radio", name, value, checked: index === 0 });
      input.addEventListener("change", () => choose(value));
      group.append(element("label", {}, input, ` ${text}`));
    });
  }

  function buildPanes() {
    for (let index = 0; index < 2; index += 1) {
      const pane = { canvas: element("canvas"), caption: element("figcaption") };
      pane.canvas.setAttribute("role", "img");
      at("panes").append(element("figure", {}, pane.caption, pane.canvas));
      if (data.slices.length > 1) {
        pane.all = element("canvas");
        pane.all.setAttribute("role", "img");
        pane.all.addEventListener("click", (event) => chooseSlice(sliceAt(pane.all, event)));
        at("slices").append(element("figure", {}, pane.all));
      }
      panes.push(pane);
    }
  }

  function sliceAt(canvas, event) {
    const [x, y] = [event.offsetX, event.offsetY].map((place) => (place * canvas.width) / canvas.clientWidth);
    const found = tiles(canvas).findIndex((box) => x < box.x + box.width && y < box.y + box.height && x >= box.x && y >= box.y);
    return found < 0 ? state.slice : found;
  }

  function buildRequests() {
    const labels = { mask: "mask", asked: "asked" };
    if (data.instrument) labels.measured = "measured";
    labels.own = "self-report";
    at("requests").style.setProperty("--columns", Object.keys(labels).length);
    const head = Object.values(labels).map((label) => element("span", { className: "value", textContent: label }));
    at("requests").append(element("div", { className: "request head" }, element("span"), ...head));
    data.attributes.forEach((attribute, index) => rows.push(buildRow(attribute, index < data.sliders, labels)));
  }

  function buildRow({ name, label, unit }, movable, labels) {
    const row = { name, unit, cells: {} };
    const text = element("span", { className: "name" }, label, " ", element("small", { textContent: unit }));
    const first = element(movable ? "label" : "span", { className: "slider" }, text);
    if (movable) {
      row.slider = element("input", { type: "range", id: `slider-${name}`, min: 0, max: data.changes.length - 1, step: 1 });
      row.slider.addEventListener("input", () => ask(row));
      row.slider.addEventListener("change", () => tell(row));
      first.append(row.slider);
    }
    row.element = element("div", { className: "request" }, first);
    for (const [key, title] of Object.entries(labels)) {
      const cell = { label: title, number: element("output", { id: `${key}-${name}` }), change: element("small", { id: `${key}-change-${name}` }) };
      const value = element("span", { className: "value" }, cell.number, cell.change);
      value.dataset.label = title;
      row.cells[key] = cell;
      row.element.append(value);
    }
    at("requests").append(row.element);
    return row;
  }

  function buildLegend() {
    const swatch = (text, color, style) => {
      const made = element("span", { textContent: text, className: style === "area" ? "area" : "" });
      made.style.setProperty("--color", color);
      if (style !== "area") made.style.setProperty("--style", style);
      return made;
    };
    legend.outlines = COLORS.length
      ? [...STRUCTURES.map((name, index) => swatch(name, COLORS[index], "solid")), swatch("the same of the reconstruction", "white", "dashed")]
      : [];
    legend.difference = [swatch("brighter than the reconstruction", `rgb(${brighter.join(" ")})`, "area"), swatch("darker", `rgb(${darker.join(" ")})`, "area")];
    at("legend").append(...legend.outlines, ...legend.difference);
    for (const key of Object.keys(legend)) explain(key);
  }

  function explain(key) {
    for (const entry of legend[key]) entry.hidden = !state[key];
  }

  function build() {
    radios(at("subjects"), "subject", data.subjects.map((each, index) => [index, String(each.number)]), chooseSubject);
    radios(at("kinds"), "kind", data.kinds.map((each) => [each.key, each.label]), chooseKind);
    buildPanes();
    buildRequests();
    buildLegend();
    at("outlines-choice").hidden = !COLORS.length;
    at("slice-choice").hidden = data.slices.length < 2;
    at("play").hidden = !beats;
    at("slice").max = data.slices.length - 1;
    document.querySelectorAll('input[name="shown"]').forEach((input) =>
      input.addEventListener("change", () => {
        state.shown = input.value;
        show();
      })
    );
    for (const key of ["outlines", "difference"]) {
      at(key).addEventListener("change", () => {
        state[key] = at(key).checked;
        explain(key);
        draw();
      });
    }
    at("slice").addEventListener("input", () => chooseSlice(Number(at("slice").value)));
    at("play").addEventListener("click", play);
    new ResizeObserver(draw).observe(at("panes"));
    addEventListener("beforeprint", draw);
    chooseSlice(state.slice);
    chooseKind(state.kind);
    chooseSubject(0);
  }

  build();
})();
