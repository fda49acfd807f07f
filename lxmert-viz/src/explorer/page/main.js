// The page: the list of pairs, the verdict, and what pointing, keys and buttons do.

const panels = [];
let live = null;

function showTip(text, event) {
  const tip = byId("tip");
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  if (!event) return;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(Math.min(event.clientX + 14, room), 4)}px`;
  tip.style.top = `${event.clientY + 18 + tip.offsetHeight > window.innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
}

function speak(text) { byId("spoken").textContent = text; }

async function copyText(text, said) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // If the clipboard is not permitted, copy a selection.
    const area = make("textarea", { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  speak(said);
  byId("about").textContent = `${said}.`;
}

// Sets what the pointer is on.
function point(what) {
  if (JSON.stringify(state.over) === JSON.stringify(what)) return;
  state.over = what;
  update();
}

// Pins a word or region, or unpins it.
function keep(what) {
  const same = state.word === what.word && state.region === what.region;
  [state.word, state.region] = same ? [null, null] : [what.word, what.region];
  if (same) state.over = null;
  update();
  writeFragment();
}

function update() {
  for (const panel of panels.slice(0, shownPanels().length)) panel.update();
}

// As Rust writes it: two decimals, four near the ends.
function decimals(probability) {
  const isNearEnd = (probability > 0.995 && probability < 1) || (probability > 0 && probability < 0.005);
  if (!isNearEnd) return probability.toFixed(2);
  const text = probability.toFixed(4);
  return text === "1.0000" ? "> 0.9999" : text === "0.0000" ? "< 0.0001" : text;
}

function verdictOf(view) {
  if (view.answer === null) return `P(match) = ${decimals(view.probability)}: ${view.probability >= 0.5 ? "match" : "no match"}`;
  return `P(“${view.answer}”) = ${decimals(view.probability)}`;
}

const rightness = (view) => (view.right === null ? "" : view.right ? "✓ right" : "✗ wrong");

const KINDS = {
  caption: "a caption of this photo",
  other: "a caption of another photo",
  hard: "a caption of this photo with a word or a relation changed: false",
  question: "a question",
  own: "your own",
};

function truthOf(one) {
  if (one.kind !== "question") return KINDS[one.kind];
  const answers = one.answers.map(([answer, score]) => (score === 1 ? answer : `${answer} (${short(score)})`));
  return answers.length > 0 ? `true answer: ${answers.join(", ")}` : "the true answer is not known";
}

function showVerdict() {
  const one = pair();
  const views = [...new Set(shownPanels().map(viewOf))];
  const blocks = views.map((view) => {
    const parts = [
      make("strong", {}, verdictOf(view)),
      make("span", { className: view.right ? "right" : "wrong" }, rightness(view)),
    ];
    if (doc.models.length > 1) parts.unshift(make("span", { className: "model" }, doc.models[view.model].name));
    if (view.truncated > 0) parts.push(make("span", { className: "notice" }, `the last ${view.truncated} word pieces did not fit and were left out`));
    const block = make("div", { className: "view" }, ...parts);
    if (view.best.length > 0) {
      block.append(make("ol", { className: "answers", "aria-label": "Best answers" }, ...view.best.map((best) => {
        const bar = make("i");
        bar.style.width = `${100 * best.probability}%`;
        const isShown = best.answer === view.answer;
        // A live model explains another answer when it is chosen.
        const name = live && !isShown ? make("button", { type: "button", title: "Explain this answer" }, best.answer) : make("span", {}, best.answer);
        if (live && !isShown) name.addEventListener("click", () => live.own.explain(one.photo, one.text, true, best.answer));
        return make("li", { className: isShown ? "on" : "" }, name, make("small", {}, decimals(best.probability)), bar);
      })));
    }
    return block;
  });
  byId("verdict").replaceChildren(
    make("h2", {}, one.kind === "question" ? one.text : `“${one.text}”`),
    make("p", {}, `${photo().name} · ${truthOf(one)}`), ...blocks);
}

const FILTERS = {
  all: ["all pairs", () => true],
  right: ["right", (one) => one.views.some((view) => view.right === true)],
  wrong: ["wrong", (one) => one.views.some((view) => view.right === false)],
  hard: ["hard: false by a word", (one) => one.kind === "hard"],
  question: ["questions", (one) => one.kind === "question"],
  own: ["your own", (one) => one.kind === "own"],
};

const isShown = (one) => FILTERS[state.filter][1](one) && one.text.toLowerCase().includes(state.search.toLowerCase());

function showList() {
  const shown = doc.pairs.map((one, index) => [one, index]).filter(([one]) => isShown(one));
  const items = shown.map(([one, index]) => {
    const view = one.views[0];
    const verdict = view.answer === null ? decimals(view.probability) : `${view.answer} ${decimals(view.probability)}`;
    const button = make("button", { type: "button", "data-item": index, tabIndex: -1 },
      make("img", { src: doc.photos[one.photo].src, alt: "", loading: "lazy" }),
      make("span", {}, one.text),
      make("small", { className: view.right === false ? "wrong" : "right" }, `${rightness(view)} ${verdict}`.trim()));
    if (index === state.pair) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => openPair(index));
    return make("li", {}, button);
  });
  byId("list").replaceChildren(...items);
  const current = byId("list").querySelector("[aria-current]") ?? byId("list").querySelector("[data-item]");
  if (current) current.tabIndex = 0;
  byId("count").textContent = shown.length === doc.pairs.length ? `${doc.pairs.length} pairs` : `${shown.length} of ${doc.pairs.length} pairs`;
}

async function openPair(index, keepChosen = false) {
  state.pair = index;
  state.over = null;
  if (!keepChosen) [state.word, state.region] = [null, null];
  await showPair();
  const focused = byId("list").contains(document.activeElement);
  showList();
  if (focused) byId("list").querySelector("[aria-current]")?.focus();
  writeFragment();
  speak(`${pair().text}: ${verdictOf(pair().views[0])}`);
}

async function showPair() {
  const one = pair();
  await Promise.all(one.views.map(unpack));
  if (one !== pair()) return;
  const shown = shownPanels();
  shown.forEach((panel) => { if (!isThere(viewOf(panel), panel)) panel.way = "language-vision"; });
  while (panels.length < shown.length) panels.push(new Panel(panels.length));
  byId("panels").replaceChildren(...panels.slice(0, shown.length).map((panel) => panel.element));
  byId("panels").classList.toggle("two", shown.length > 1);
  panels.slice(0, shown.length).forEach((panel) => panel.show());
  if (live && live.pair !== one) {
    live.pair = one;
    live.removal.reset();
  }
  byId("compare").setAttribute("aria-pressed", String(state.compare));
  showVerdict();
  document.title = `${one.text} · LXMERT explorer`;
}

const quantisation = () =>
  "Weights are rounded to 255 even steps of the largest of their map (65,535 where a method goes through all layers), so each is off by at most half a step: the ± beside it. Probabilities are not rounded.";

// The link that opens this view again.
const link = () => location.href;

async function start() {
  if (doc.pairs.length === 0 && !doc.live) return;
  readFragment();
  live = makeLive();
  byId("about").textContent = `${doc.title} · ${doc.models.map((model) => model.name).join(" · ")}`;
  byId("notice").textContent = doc.notice ?? "";
  byId("notice").hidden = !doc.notice;
  byId("footer").textContent = quantisation();
  if (!Object.hasOwn(FILTERS, state.filter)) state.filter = "all";
  byId("filter").replaceChildren(...Object.entries(FILTERS)
    .filter(([key, [, fits]]) => key === "all" || (key === "own" && doc.live) || doc.pairs.some(fits))
    .map(([key, [name]]) => make("option", { value: key, selected: key === state.filter }, name)));
  byId("search").value = state.search;
  byId("filter").addEventListener("change", (event) => { state.filter = event.target.value; showList(); writeFragment(); });
  byId("search").addEventListener("input", (event) => { state.search = event.target.value; showList(); writeFragment(); });
  byId("compare").addEventListener("click", async () => {
    state.compare = !state.compare;
    const other = pair().views.find((view) => view.model !== viewOf(state.panels[0]).model);
    if (state.compare && other) Object.assign(state.panels[1], state.panels[0], { model: other.model });
    await showPair();
    writeFragment();
  });
  byId("save").addEventListener("click", savePicture);
  byId("link").addEventListener("click", () => copyText(link(), "The link is copied"));
  byId("theme").addEventListener("change", (event) => { document.documentElement.style.colorScheme = event.target.value; update(); });
  byId("keys").addEventListener("click", () => byId("help").showModal());
  byId("help-close").addEventListener("click", () => byId("help").close());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
  window.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || byId("help").open) return;
    showTip(null);
    [state.word, state.region, state.over] = [null, null, null];
    update();
    writeFragment();
  });
  window.addEventListener("hashchange", async () => { readFragment(); await showPair(); showList(); });
  roving(byId("list"));
  await showPair();
  showList();
  writeFragment();
  document.documentElement.dataset.ready = "true";
}

await start();
