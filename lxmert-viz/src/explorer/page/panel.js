// One view of the pair: controls, the photo and its regions, the words, heads to pick from, and the matrix.

const LABELS = 6;

// Arrow keys within a group of buttons of which one can be reached by Tab.
function roving(group, columns) {
  group.addEventListener("keydown", (event) => {
    const items = [...group.querySelectorAll("[data-item]")];
    const at = items.indexOf(event.target.closest("[data-item]"));
    const across = columns ? columns() : 1;
    const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + across, ArrowUp: at - across, Home: 0, End: items.length - 1 };
    const to = items[moves[event.key]];
    if (at < 0 || !(event.key in moves)) return;
    event.preventDefault();
    if (!to) return;
    enter(group, to);
    to.focus();
  });
  group.addEventListener("focusin", (event) => {
    const item = event.target.closest("[data-item]");
    if (item) enter(group, item);
  });
}

function enter(group, item) {
  for (const other of group.querySelectorAll("[data-item]")) other.tabIndex = other === item ? 0 : -1;
}

// Pointing at an element, or reaching it by the keyboard, previews what it stands for.
function previews(element, what, tip) {
  element.addEventListener("pointerenter", (event) => { if (event.pointerType !== "touch") point(what); showTip(tip(), event); });
  element.addEventListener("pointermove", (event) => showTip(tip(), event));
  element.addEventListener("pointerleave", () => { point(null); showTip(null); });
  element.addEventListener("focus", () => { if (element.matches(":focus-visible")) point(what); });
  element.addEventListener("blur", () => point(null));
  element.addEventListener("click", () => keep(what));
}

class Panel {
  constructor(index) {
    this.index = index;
    this.mask = `veil-${index}`;
    const name = `View ${"AB"[index]}`;
    this.controls = make("div", { className: "controls", role: "group", "aria-label": `${name}: what is shown` });
    this.svg = makeSvg("svg", { class: "photo", role: "img" });
    this.words = make("div", { className: "words", role: "toolbar", "aria-label": `${name}: words` });
    this.regions = make("div", { className: "regions", role: "toolbar", "aria-label": `${name}: regions`, "aria-orientation": "vertical" });
    this.legend = make("div", { className: "legend" });
    this.heads = make("div", { className: "heads", role: "toolbar", "aria-label": `${name}: layers and heads` });
    this.matrix = new MatrixView((cell) => this.pointCell(cell), (cell) => keep(this.meaning(cell[0])));
    this.said = make("p", { className: "said" });
    const photoSide = make("figure", {}, this.svg, this.words, this.legend);
    const overview = make("details", { className: "overview", open: true }, make("summary", {}, "Layers × heads"), this.heads);
    const whole = make("details", { className: "whole", open: true }, make("summary", {}, "The whole map"), this.matrix.element);
    this.element = make("section", { className: "panel", "aria-label": name }, this.controls, this.said,
      make("div", { className: "seen" }, photoSide, this.regions), make("div", { className: "maps" }, overview, whole));
    roving(this.words);
    roving(this.regions);
    roving(this.heads, () => this.across);
    this.svg.addEventListener("pointermove", (event) => this.pointPhoto(event));
    this.svg.addEventListener("pointerleave", () => { point(null); showTip(null); });
    this.svg.addEventListener("click", (event) => { const region = this.regionAt(event); if (region !== null) keep({ word: null, region }); });
    new ResizeObserver(() => { if (this.view) this.update(); }).observe(this.element);
  }

  get panel() { return state.panels[this.index]; }

  // Rebuilds everything for another pair or checkpoint.
  show() {
    this.view = viewOf(this.panel);
    this.photo = photo();
    this.names = this.photo.regions.slice(0, this.view.regions).map(regionName);
    const [width, height] = [this.photo.width, this.photo.height].map((side) => (640 * side) / Math.max(this.photo.width, this.photo.height));
    this.size = [width, height];
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("aria-label", `${this.photo.name} with ${this.names.length} regions, which are listed beside it`);
    this.layers = { veil: makeSvg("mask", { id: this.mask }), boxes: makeSvg("g"), labels: makeSvg("g") };
    const veil = makeSvg("rect", { width, height, class: "veil", mask: `url(#${this.mask})` });
    this.svg.replaceChildren(this.layers.veil, makeSvg("image", { href: this.photo.src, width, height, preserveAspectRatio: "none" }), veil, this.layers.boxes, this.layers.labels);
    this.words.replaceChildren(...this.view.tokens.map((token, word) => {
      const inner = token.startsWith("##");
      const button = make("button", { type: "button", className: inner ? "word inner" : "word", tabIndex: word === 0 ? 0 : -1, "data-item": word },
        make("span", {}, inner ? token.slice(2) : token), make("small"));
      previews(button, { word, region: null }, () => this.tip("words", word));
      return button;
    }));
    this.regions.replaceChildren(...this.names.map((name, region) => {
      const { score } = this.photo.regions[region];
      const detected = score === null ? "" : `detected with ${score.toFixed(2)}`;
      const button = make("button", { type: "button", className: "region", tabIndex: region === 0 ? 0 : -1, "data-item": region },
        make("span", { className: "name" }, name), make("small", { className: "detected" }, detected), make("small", { className: "weight" }), make("i"));
      previews(button, { word: null, region }, () => this.tip("regions", region));
      return button;
    }));
    this.showControls();
    this.showHeads();
    this.update();
  }

  // Updates for another method, direction, layer or head.
  change(changes) {
    Object.assign(this.panel, changes);
    if (!isThere(this.view, this.panel)) this.panel.way = "language-vision";
    if ("model" in changes) this.show();
    else {
      this.showControls();
      this.showHeads();
      this.update();
    }
    writeFragment();
    showVerdict();
  }

  showControls() {
    const { panel, view } = this;
    const focused = this.controls.contains(document.activeElement) ? document.activeElement.name : null;
    const choice = (name, label, options, value, why = "") => {
      const select = make("select", { name, title: why }, ...options.map(([key, text, off]) => make("option", { value: key, disabled: Boolean(off), selected: key === value }, text)));
      select.disabled = options.filter(([, , off]) => !off).length < 2;
      select.addEventListener("change", () => this.change({ [name]: name === "model" ? Number(select.value) : select.value, ...(name === "way" || name === "method" ? { layer: null } : {}) }));
      return make("label", {}, label, select);
    };
    const slider = (name, label, most, value, text, set, least) => {
      const input = make("input", { type: "range", name, min: least, max: most, step: 1, value, disabled: most <= least, "aria-valuetext": text });
      input.addEventListener("input", () => set(Number(input.value)));
      return make("label", { className: "slider" }, label, input, make("output", {}, text));
    };
    const layers = layersOf(view, panel);
    const layer = layerOf(view, panel);
    const number = layers.indexOf(layers.find((one) => one.stack === layer.stack && one.index === layer.index)) + 1;
    const head = Math.min(panel.head, layer.heads);
    const headText = layer.heads === 1 ? (panel.method === "attention" ? "the one head" : "mean of heads") : head === 0 ? `mean of ${layer.heads}` : `head ${head} of ${layer.heads}`;
    const models = doc.models.map((model, i) => [i, model.name, !pair().views.some((one) => one.model === i)]);
    const ways = Object.entries(WAYS).map(([key, way]) => [key, way.name, !isThere(view, { ...panel, way: key })]);
    const signed = doc.method[panel.method].signed;
    this.controls.replaceChildren(
      ...(doc.models.length > 1 ? [choice("model", "Checkpoint", models, view.model)] : []),
      choice("method", "Method", doc.methods.map((method) => [method.slug, method.name]), panel.method, doc.method[panel.method].explanation),
      choice("way", "Direction", ways, panel.way),
      choice("stance", "What speaks", [["for", `for ${claim(view)}`], ["against", `against ${claim(view)}`, !signed]], signed ? panel.stance : "for",
        signed ? "by the sign of the gradient" : "this method reads no gradient, so it cannot tell for from against"),
      slider("layer", "Layer", layers.length, number, layer.name, (value) => this.change({ layer: value === layers.length ? null : value }), 1),
      slider("head", "Head", layer.heads > 1 ? layer.heads : 0, head, headText, (value) => this.change({ head: value }), 0),
    );
    if (focused) this.controls.querySelector(`[name="${focused}"]`)?.focus();
  }

  showHeads() {
    const { panel, view } = this;
    const focused = this.heads.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    const layers = layersOf(view, panel);
    const current = layerOf(view, panel);
    this.across = Math.max(...layers.map((layer) => (layer.heads > 1 ? layer.heads + 1 : 1)));
    this.heads.style.setProperty("--across", this.across);
    const cells = layers.flatMap((layer, i) => {
      const heads = layer.heads > 1 ? [...Array(layer.heads + 1).keys()] : [0];
      const buttons = heads.map((head) => {
        const map = mapOf(view, layer, head);
        const name = `${layer.name}, ${head === 0 ? "mean" : `head ${head}`}`;
        const on = layer.stack === current.stack && layer.index === current.index && head === Math.min(panel.head, layer.heads);
        const button = make("button", { type: "button", className: "head", "aria-label": name, "aria-pressed": String(on), tabIndex: on ? 0 : -1, "data-item": "" }, thumbnail(map));
        const tip = `${name}: the largest share of a row is ${sharpness(map).toFixed(2)} on average`;
        button.addEventListener("pointermove", (event) => showTip(tip, event));
        button.addEventListener("pointerleave", () => showTip(null));
        button.addEventListener("click", () => this.change({ layer: i + 1 === layers.length ? null : i + 1, head }));
        return button;
      });
      return [make("span", { className: "layer" }, layer.name.replace(/ layer (\d+) of .*/, " $1")), ...buttons];
    });
    const titles = this.across > 1 ? [make("span"), make("span", {}, "mean"), ...[...Array(this.across - 1).keys()].map((i) => make("span", {}, String(i + 1)))] : [];
    this.heads.replaceChildren(...titles, ...cells);
    if (focused) [...this.heads.children].find((one) => one.getAttribute("aria-label") === focused)?.focus();
  }

  // Updates the weights for another word or region.
  update() {
    const { panel, view } = this;
    const now = chosen();
    this.weights = weightsOf(view, panel, now);
    this.scales = { words: this.weights.words && scaleOf(this.weights.words), regions: this.weights.regions && scaleOf(this.weights.regions) };
    this.updateWords(now);
    this.updateRegions(now);
    this.updatePhoto(now);
    this.updateLegend();
    const way = WAYS[panel.way];
    const matrix = matrixOf(view, panel);
    const row = way.rows === "words" ? now.word : now.region;
    const column = way.rows === way.columns ? null : way.columns === "words" ? now.word : now.region;
    const inside = (index, count) => (index !== null && index < count ? index : null);
    this.matrix.show({ matrix, rowNames: this.sideNames(way.rows), columnNames: this.sideNames(way.columns), name: `${way.sentence}, ${layerOf(view, panel).name}` },
      { row: inside(row, matrix.rows), column: inside(column, matrix.columns) });
    this.said.textContent = this.saying(now);
  }

  sideNames(side) { return side === "words" ? this.view.tokens : this.names; }

  // What is shown, in a sentence.
  saying(now) {
    const { panel, view } = this;
    const method = doc.method[panel.method];
    const layer = layerOf(view, panel);
    const subject = now.word !== null ? `the word “${view.tokens[now.word]}”` : now.region !== null ? `the region “${this.names[now.region] ?? now.region + 1}”` : "the whole sentence";
    const head = layer.heads > 1 && panel.head > 0 ? `head ${Math.min(panel.head, layer.heads)}` : "mean of heads";
    const how = isThrough(panel.method) ? `${method.name}, through all layers` : `${method.name}, ${layer.name}, ${head}`;
    const stance = method.signed ? `, what speaks ${panel.stance} ${claim(view)}` : "";
    if (this.weights.words === null && this.weights.regions === null) {
      return `${WAYS[panel.way].sentence}: this map says nothing of ${subject}. Point at ${WAYS[panel.way].rows === "words" ? "a word" : "a region"}.`;
    }
    const what = this.weights.of === "column" ? `who attends to ${subject}` : now.word === null && now.region === null ? `the whole sentence: ${this.weights.of}` : subject;
    return `${what} · ${how}${stance}`;
  }

  tip(side, index) {
    const weights = this.weights[side];
    const name = this.sideNames(side)[index];
    const region = side === "regions" ? this.photo.regions[index] : null;
    const detected = region && region.score !== null ? ` · detected with ${region.score.toFixed(2)}` : "";
    return weights ? `${name}: ${exact(weights[index], this.weights.errors[side])}${detected}` : `${name}${detected}`;
  }

  updateWords(now) {
    const { words: weights } = this.weights;
    [...this.words.children].forEach((button, word) => {
      const weight = weights ? weights[word] : null;
      const colour = weight === null ? null : colourAt(this.scales.words.position(weight));
      button.style.background = colour ? css(colour) : "";
      button.style.color = colour ? inkOn(colour) : "";
      button.lastChild.textContent = weight === null ? "" : short(weight);
      button.setAttribute("aria-pressed", String(state.word === word));
      button.classList.toggle("on", now.word === word);
      button.classList.toggle("gone", isHidden("word", word));
      button.setAttribute("aria-label", `${this.view.tokens[word]}${weight === null ? "" : `, ${exact(weight, this.weights.errors.words)}`}${isHidden("word", word) ? ", hidden" : ""}`);
    });
  }

  updateRegions(now) {
    const { regions: weights } = this.weights;
    [...this.regions.children].forEach((button, region) => {
      const weight = weights ? weights[region] : null;
      const share = weight === null ? 0 : this.scales.regions.position(weight);
      const bar = button.lastChild;
      bar.style.width = `${share * 100}%`;
      bar.style.background = css(colourAt(share));
      button.querySelector(".weight").textContent = weight === null ? "" : short(weight);
      button.setAttribute("aria-pressed", String(state.region === region));
      button.classList.toggle("on", now.region === region);
      button.classList.toggle("gone", isHidden("region", region));
      button.setAttribute("aria-label", `${this.names[region]}${weight === null ? "" : `, ${exact(weight, this.weights.errors.regions)}`}${isHidden("region", region) ? ", hidden" : ""}`);
    });
  }

  // What has little weight fades, what stands out is outlined and named; no colour lies over the photo, since sentences are
  // about its colours.
  updatePhoto(now) {
    const { regions: weights } = this.weights;
    const scale = this.scales.regions;
    const [width, height] = this.size;
    const unit = 1 / (this.svg.getScreenCTM()?.a || 1);
    const boxes = this.photo.regions.slice(0, this.names.length).map((region, index) => {
      const [x0, y0, x1, y1] = region.box;
      return { index, x: x0 * width, y: y0 * height, w: Math.max(x1 - x0, 0) * width, h: Math.max(y1 - y0, 0) * height, share: weights ? scale.position(weights[index]) : 0 };
    });
    const rising = [...boxes].sort((a, b) => a.share - b.share);
    const strongest = weights ? rising.filter((box) => scale.standsOut(weights[box.index])).reverse().slice(0, LABELS) : [];
    const top = strongest.length > 0 ? strongest[0].share : 1;
    const rect = (box, attributes) => makeSvg("rect", { x: box.x, y: box.y, width: box.w, height: box.h, ...attributes });
    const grey = (share) => `rgb(${Math.round(255 * (1 - share))} ${Math.round(255 * (1 - share))} ${Math.round(255 * (1 - share))})`;
    this.layers.veil.replaceChildren(makeSvg("rect", { width, height, fill: weights ? "white" : "black" }), ...(weights ? rising.map((box) => rect(box, { fill: grey(Math.min(box.share / top, 1)) })) : []));
    const named = [...strongest.map((box) => box.index)];
    const current = now.region !== null ? boxes[now.region] : null;
    if (current && !named.includes(current.index)) named.unshift(current.index);
    const outlines = [];
    for (const box of rising) {
      const isNamed = named.includes(box.index);
      const isCurrent = now.region === box.index;
      if (isHidden("region", box.index)) outlines.push(rect(box, { class: "hidden-box", "stroke-width": unit }));
      if (!isNamed) outlines.push(rect(box, { class: "box", "stroke-width": unit }));
      else {
        outlines.push(rect(box, { class: "casing", "stroke-width": 5 * unit }));
        outlines.push(rect(box, { fill: "none", stroke: isCurrent ? "var(--mark)" : css(colourAt(box.share)), "stroke-width": 3 * unit, "data-named": box.index }));
      }
    }
    this.layers.boxes.replaceChildren(...outlines);
    this.placeLabels(named.map((index) => boxes[index]), unit, now);
  }

  // Names beside their boxes, never over one another and never off the photo.
  placeLabels(boxes, unit, now) {
    const { regions: weights } = this.weights;
    const [width, height] = this.size;
    const taken = [];
    const labels = [];
    for (const box of boxes) {
      const text = `${this.names[box.index]}${weights ? ` · ${short(weights[box.index])}` : ""}`;
      const w = Math.min((text.length * 7.1 + 10) * unit, width);
      const h = 19 * unit;
      const xs = [box.x, box.x + box.w - w].map((x) => Math.min(Math.max(x, 0), width - w));
      const ys = [box.y - h, box.y + box.h, box.y, box.y + box.h - h].map((y) => Math.min(Math.max(y, 0), height - h));
      const places = ys.flatMap((y) => xs.map((x) => ({ x, y, w, h })));
      const free = places.find((one) => !taken.some((other) => one.x < other.x + other.w && other.x < one.x + one.w && one.y < other.y + other.h && other.y < one.y + one.h));
      if (!free) continue;
      taken.push(free);
      const colour = now.region === box.index ? null : colourAt(box.share);
      labels.push(makeSvg("rect", { x: free.x, y: free.y, width: w, height: h, rx: 3 * unit, fill: colour ? css(colour) : "var(--mark)" }));
      labels.push(makeSvg("text", { x: free.x + 5 * unit, y: free.y + 14 * unit, "font-size": 13 * unit, "textLength": w - 10 * unit, lengthAdjust: "spacingAndGlyphs", fill: colour ? inkOn(colour) : "#1c1e22" }, text));
    }
    this.layers.labels.replaceChildren(...labels);
  }

  updateLegend() {
    const sides = ["regions", "words"].filter((side) => this.scales[side]);
    this.legend.replaceChildren(...sides.map((side) => {
      const scale = this.scales[side];
      const bar = make("span", { className: "bar" });
      bar.style.background = `linear-gradient(to right, ${doc.palette.join(", ")})`;
      return make("p", {}, make("span", {}, `${side}: 0`), bar, make("span", {}, short(scale.max)),
        make("span", {}, `when all have the same: ${short(scale.even)} · ± ${short(this.weights.errors[side])}`));
    }));
  }

  regionAt(event) {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    const [x, y] = [at.x / this.size[0], at.y / this.size[1]];
    let best = null;
    let smallest = Infinity;
    this.photo.regions.slice(0, this.names.length).forEach(({ box: [x0, y0, x1, y1] }, index) => {
      const area = (x1 - x0) * (y1 - y0);
      if (x >= x0 && x <= x1 && y >= y0 && y <= y1 && area < smallest) [best, smallest] = [index, area];
    });
    return best;
  }

  pointPhoto(event) {
    const region = this.regionAt(event);
    if (event.pointerType !== "touch") point(region === null ? null : { word: null, region });
    showTip(region === null ? null : this.tip("regions", region), event);
  }

  // The word or region that a row of the matrix stands for.
  meaning(row) {
    return WAYS[this.panel.way].rows === "words" ? { word: row, region: null } : { word: null, region: row };
  }

  pointCell(cell) { point(cell && this.meaning(cell[0])); }
}

// A map as a picture with one pixel per value.
function thumbnail(map) {
  const canvas = make("canvas", { width: map.columns, height: map.rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(map.columns, map.rows);
  const largest = Math.max(...map.values, Number.MIN_VALUE);
  map.values.forEach((value, i) => image.data.set([...colourAt(value / largest), 255], 4 * i));
  context.putImageData(image, 0, 0);
  return canvas;
}

const claim = (view) => (view.answer === null ? "the match" : `the answer “${view.answer}”`);
