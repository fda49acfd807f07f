// What a live model adds to the page: the reader's own photos and texts, hiding, perturbation. A saved file has none of it.

// The hidden word pieces and regions of the shown pair.
const hidden = { word: new Set(), region: new Set() };
const isHidden = (side, index) => hidden[side].has(index);

// Asks the server; a refusal becomes an error with its message. While it waits, `progress` receives the server's progress.
async function ask(path, body, headers, progress) {
  let waiting = true;
  const poll = async () => {
    while (waiting) {
      await new Promise((done) => setTimeout(done, 400));
      if (!waiting) return;
      const status = await fetch("/api/status").then((response) => response.json()).catch(() => null);
      if (waiting && status) progress(status);
    }
  };
  poll();
  try {
    const response = await fetch(path, { method: "POST", body, headers });
    const found = await response.json();
    if (!response.ok) throw new Error(found.error);
    return found;
  } catch (error) {
    throw error instanceof TypeError ? new Error("the server does not answer; is it still running?") : error;
  } finally {
    waiting = false;
  }
}

const askJson = (path, question, progress = () => {}) => ask(path, JSON.stringify(question), { "Content-Type": "application/json" }, progress);

// The question that the shown pair puts to the server.
const questionOf = (one, view) => ({
  photo: doc.photos[one.photo].id,
  text: one.text,
  question: view.answer !== null,
  answer: view.answer,
  model: view.model,
});

class Own {
  constructor() {
    this.file = make("input", { type: "file", accept: "image/*", id: "photo-file" });
    this.drop = make("label", { className: "drop", for: "photo-file" }, make("strong", {}, "Drop a photo"), " or choose one", this.file);
    this.preview = make("p", { className: "dropped" });
    this.text = make("textarea", { id: "own-text", rows: 2, maxLength: doc.live.most_characters, placeholder: "A sentence, or a question" });
    const kinds = [["sentence", "Sentence: does it fit?", doc.models.some((model) => model.matches)], ["question", "Question", doc.models.some((model) => model.answers)]];
    this.kinds = kinds.map(([value, label, there], i) => {
      const input = make("input", { type: "radio", name: "own-kind", value, disabled: !there });
      input.checked = there && !kinds.slice(0, i).some(([, , before]) => before);
      return make("label", {}, input, label);
    });
    this.go = make("button", { type: "submit" }, "Ask the model");
    this.bar = make("progress", { "aria-label": "The model works", hidden: true });
    this.said = make("p", { role: "status", className: "own-said" });
    this.form = make("form", { "aria-label": "Ask the model" }, this.drop, this.preview, make("label", { for: "own-text" }, "Text"), this.text,
      make("fieldset", {}, make("legend", { className: "unseen" }, "What it is"), ...this.kinds), this.go, this.bar, this.said);
    this.element = make("details", { className: "own", open: true }, make("summary", {}, "Ask the model"), this.form);
    this.photo = null;
    this.busy = 0;
    this.file.addEventListener("change", () => { if (this.file.files[0]) this.take(this.file.files[0]); });
    // Anywhere on the page; a photo that misses the field must not open in its place.
    window.addEventListener("dragover", (event) => { event.preventDefault(); this.drop.classList.add("over"); });
    window.addEventListener("dragleave", () => this.drop.classList.remove("over"));
    window.addEventListener("drop", (event) => {
      event.preventDefault();
      this.drop.classList.remove("over");
      const [file] = event.dataTransfer.files;
      if (file) this.take(file);
      else this.say("That was no file. Drop a photo from a folder.", true);
    });
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    this.text.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); this.submit(); } });
  }

  say(text, isError = false) {
    this.said.textContent = text;
    this.said.classList.toggle("wrong", isError);
  }

  // Runs a request to the model: shows that it is busy, and any failure as a message.
  async work(what, action) {
    this.busy += 1;
    this.bar.hidden = false;
    this.say(`${what} …`);
    try {
      const done = await action((status) => {
        const wait = status.waiting > 0 ? `, ${status.waiting} waiting` : "";
        this.say(status.what ? `the model is ${status.what} (${status.seconds.toFixed(0)} s${wait})` : `${what} …`);
      });
      this.say("");
      return done;
    } catch (error) {
      this.say(error.message, true);
      return null;
    } finally {
      this.busy -= 1;
      this.bar.hidden = this.busy === 0;
    }
  }

  async take(file) {
    if (file.size > doc.live.most_bytes) {
      this.say(`${file.name} has ${Math.ceil(file.size / 1e6)} MB; at most ${doc.live.most_bytes / 1e6} MB are accepted.`, true);
      return;
    }
    const found = await this.work(`finding the regions of ${file.name}`, (progress) =>
      ask(`/api/photo?${encodeURIComponent(file.name)}`, file, { "Content-Type": "application/octet-stream" }, progress));
    if (!found) return;
    doc.photos.push(found);
    this.photo = doc.photos.length - 1;
    this.preview.replaceChildren(make("img", { src: found.src, alt: "" }), `${found.name}: ${found.regions.length} regions by the ${doc.live.detector} detector`);
    if (this.text.value.trim() !== "") await this.submit();
    else {
      this.say("Now write a sentence or a question.");
      this.text.focus();
    }
  }

  async submit() {
    const text = this.text.value.trim();
    if (text === "") {
      this.say("Write a sentence or a question first.", true);
      this.text.focus();
      return;
    }
    const chosen = this.form.querySelector("[name=own-kind]:checked")?.value ?? "sentence";
    await this.explain(this.photo ?? pair()?.photo ?? 0, text, chosen === "question", null);
  }

  // Explains a text about a photo and opens it as a pair of its own.
  async explain(photo, text, question, answer) {
    if (!doc.photos[photo]) return this.say("Drop a photo first.", true);
    const views = await this.work("explaining", (progress) => askJson("/api/explain", { photo: doc.photos[photo].id, text, question, answer }, progress));
    if (!views) return;
    doc.pairs.push({ photo, text, kind: "own", truth: null, answers: [], views });
    state.filter = "all";
    byId("filter").value = "all";
    await openPair(doc.pairs.length - 1);
  }
}

// Hiding and perturbing the pair that is shown.
class Removal {
  constructor(own) {
    this.own = own;
    this.hide = make("button", { type: "button" }, "Hide what is kept");
    this.all = make("button", { type: "button" }, "Show all again");
    this.chips = make("span", { className: "chips" });
    this.score = make("p", { role: "status", className: "score" });
    this.perturb = make("button", { type: "button" }, "Perturbation curves of this pair");
    this.curves = make("div", { className: "curves" });
    this.element = make("section", { className: "panel removal", "aria-label": "Hide and perturb" },
      make("h3", {}, "Hide words and regions, and see the score move"),
      make("p", { className: "hint" }, "Keep a word or region by a click or Enter, then hide it here or with Delete. What is hidden is dropped from the input; the maps above stay those of the whole."),
      make("div", { className: "row" }, this.hide, this.all, this.chips), this.score, this.perturb, this.curves);
    this.hide.addEventListener("click", () => this.toggleKept());
    this.all.addEventListener("click", () => this.clear());
    this.perturb.addEventListener("click", () => this.draw());
    window.addEventListener("keydown", (event) => {
      if (event.key === "Delete" && !event.target.closest("input, textarea")) this.toggleKept();
    });
  }

  // For a new pair nothing is hidden.
  reset() {
    hidden.word.clear();
    hidden.region.clear();
    this.curves.replaceChildren();
    this.show();
    this.score.textContent = "";
  }

  get view() { return viewOf(state.panels[0]); }

  // A word is hidden with all its pieces.
  piecesOf(piece) { return this.view.words.find((word) => word.pieces.includes(piece))?.pieces ?? []; }

  toggleKept() {
    const over = state.over ?? {};
    const word = state.word ?? over.word ?? null;
    const region = state.region ?? over.region ?? null;
    if (word === null && region === null) {
      this.score.textContent = "Keep a word or a region first.";
      return;
    }
    const pieces = word === null ? [] : this.piecesOf(word);
    if (word !== null && pieces.length === 0) {
      this.score.textContent = `${this.view.tokens[word]} is no word of the sentence; it stays.`;
      return;
    }
    const toggle = (set, index) => { if (!set.delete(index)) set.add(index); };
    pieces.forEach((piece) => toggle(hidden.word, piece));
    if (word === null) toggle(hidden.region, region);
    this.change();
  }

  clear() {
    hidden.word.clear();
    hidden.region.clear();
    this.change();
  }

  show() {
    const view = this.view;
    const chips = [
      ...view.words.filter((word) => word.pieces.some((piece) => hidden.word.has(piece))).map((word) => [word.text, () => word.pieces.forEach((piece) => hidden.word.delete(piece))]),
      ...[...hidden.region].map((region) => [regionName(photo().regions[region], region), () => hidden.region.delete(region)]),
    ];
    this.all.disabled = chips.length === 0;
    this.chips.replaceChildren(...chips.map(([name, show]) => {
      const chip = make("button", { type: "button", className: "chip", "aria-label": `Show ${name} again` }, `${name} ×`);
      chip.addEventListener("click", () => { show(); this.change(); });
      return chip;
    }));
  }

  async change() {
    this.show();
    update();
    const [one, view] = [pair(), this.view];
    if (hidden.word.size + hidden.region.size === 0) {
      this.score.textContent = "";
      return;
    }
    this.latest = (this.latest ?? 0) + 1;
    const { latest } = this;
    const question = { ...questionOf(one, view), hidden_words: [...hidden.word], hidden_regions: [...hidden.region] };
    const found = await this.own.work("scoring without them", (progress) => askJson("/api/score", question, progress));
    // A later change has sent a newer request.
    if (!found || latest !== this.latest || one !== pair()) return;
    const moved = found.probability - view.probability;
    const name = view.answer === null ? "P(match)" : `P(“${view.answer}”)`;
    const best = found.best.length > 0 && found.best[0].answer !== view.answer ? ` · the best answer is now “${found.best[0].answer}” (${decimals(found.best[0].probability)})` : "";
    this.score.replaceChildren(`${name}: ${decimals(view.probability)} → `, make("strong", { "data-probability": found.probability }, decimals(found.probability)),
      ` (${moved >= 0 ? "+" : "−"}${Math.abs(moved).toFixed(4)})${best}`);
  }

  async draw() {
    const [one, view] = [pair(), this.view];
    const curves = await this.own.work("perturbing", (progress) => askJson("/api/perturb", questionOf(one, view), progress));
    if (!curves || one !== pair()) return;
    const tests = [["regions", "positive"], ["words", "positive"], ["regions", "negative"], ["words", "negative"]];
    this.curves.replaceChildren(...tests.map(([side, order]) => chart(curves.filter((curve) => curve.side === side && curve.order === order), side, order)));
  }
}

// Lines of the probability over the share removed, told apart by colour (Okabe and Ito), dashes and the table below.
const LINES = [["#e69f00", ""], ["#56b4e9", "7 3"], ["#0072b2", ""], ["#009e73", "2 3"], ["#cc79a7", "9 3 2 3"], ["#787878", "4 4"]];

function chart(curves, side, order) {
  const title = `${side}, the ${order === "positive" ? "most" : "least"} relevant removed first`;
  const [width, height, left, top] = [300, 170, 34, 8];
  const x = (removed) => left + removed * (width - left - 8);
  const y = (probability) => top + (1 - probability) * (height - top - 26);
  const svg = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Perturbation: ${title}; the numbers are in the table below` });
  for (const tick of [0, 0.5, 1]) {
    svg.append(makeSvg("line", { x1: left, x2: width - 8, y1: y(tick), y2: y(tick), class: "grid" }), makeSvg("text", { x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
    svg.append(makeSvg("text", { x: x(tick), y: height - 10, "text-anchor": tick === 1 ? "end" : "middle" }, `${100 * tick} %`));
  }
  curves.forEach((curve, i) => {
    const [colour, dashes] = LINES[i % LINES.length];
    const points = curve.removed.map((removed, at) => `${x(removed)},${y(curve.probability[at])}`).join(" ");
    svg.append(makeSvg("polyline", { points, fill: "none", stroke: colour, "stroke-width": 2.2, "stroke-dasharray": dashes }));
  });
  const key = make("ul", { className: "key" }, ...curves.map((curve, i) => {
    const [colour, dashes] = LINES[i % LINES.length];
    const sample = makeSvg("svg", { viewBox: "0 0 26 6", class: "sample", "aria-hidden": "true" }, makeSvg("line", { x1: 0, x2: 26, y1: 3, y2: 3, stroke: colour, "stroke-width": 2.5, "stroke-dasharray": dashes }));
    return make("li", {}, sample, curve.method);
  }));
  const head = make("tr", {}, make("th", {}, "removed"), ...curves[0].removed.map((removed) => make("th", { scope: "col" }, `${Math.round(100 * removed)} %`)));
  const rows = curves.map((curve) => make("tr", {}, make("th", { scope: "row" }, curve.method), ...curve.probability.map((probability) => make("td", {}, probability.toFixed(3)))));
  const table = make("details", { className: "numbers" }, make("summary", {}, "Numbers"), make("div", { className: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))));
  return make("figure", {}, make("figcaption", {}, title), svg, key, table);
}

// The two parts, where there is a model.
function makeLive() {
  if (!doc.live) return null;
  const own = new Own();
  const removal = new Removal(own);
  byId("live-slot").append(own.element);
  byId("removal-slot").append(removal.element);
  return { own, removal };
}
