// The view's state. The address's fragment holds it, so that a link shows the same view.
const newPanel = () => ({ method: "attention", way: "language-vision", layer: null, head: 0, stance: "for", model: null });

const state = {
  pair: 0,
  // The index of the pinned word or region; at most one of them.
  word: null,
  region: null,
  compare: false,
  panels: [newPanel(), { ...newPanel(), method: "relevancy" }],
  filter: "all",
  search: "",
  // What the pointer is on; it takes precedence over what is pinned, and is not in the fragment.
  over: null,
};

const chosen = () => state.over ?? { word: state.word, region: state.region };
const pair = () => doc.pairs[state.pair];
const photo = () => doc.photos[pair().photo];
const shownPanels = () => (state.compare ? state.panels : state.panels.slice(0, 1));

// The view of a panel's checkpoint; another's where that one says nothing of this pair.
const viewOf = (panel) => pair().views.find((view) => view.model === panel.model) ?? pair().views[0];

const PANEL_KEYS = { m: "method", w: "way", s: "stance" };

function writeFragment() {
  const parts = new URLSearchParams();
  parts.set("pair", state.pair + 1);
  if (state.word !== null) parts.set("word", state.word);
  if (state.region !== null) parts.set("region", state.region + 1);
  shownPanels().forEach((panel, i) => {
    const prefix = i === 0 ? "" : "b.";
    for (const [key, name] of Object.entries(PANEL_KEYS)) parts.set(prefix + key, panel[name]);
    if (panel.layer !== null) parts.set(`${prefix}l`, panel.layer);
    parts.set(`${prefix}h`, panel.head);
    if (panel.model !== null) parts.set(`${prefix}c`, panel.model + 1);
  });
  if (state.filter !== "all") parts.set("show", state.filter);
  if (state.search !== "") parts.set("text", state.search);
  const fragment = `#${parts}`;
  if (fragment !== location.hash) history.replaceState(null, "", fragment);
}

function readFragment() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const number = (key, from, to) => {
    const value = Number.parseInt(parts.get(key) ?? "", 10);
    return Number.isInteger(value) && value >= from && value <= to ? value : null;
  };
  state.pair = (number("pair", 1, doc.pairs.length) ?? 1) - 1;
  const view = pair()?.views[0];
  state.word = view ? number("word", 0, view.tokens.length - 1) : null;
  const region = view ? number("region", 1, photo().regions.length) : null;
  state.region = region === null || state.word !== null ? null : region - 1;
  state.compare = parts.has("b.m");
  state.panels.forEach((panel, i) => {
    const prefix = i === 0 ? "" : "b.";
    if (i > 0 && !state.compare) return;
    const known = { method: doc.method, way: WAYS, stance: { for: 1, against: 1 } };
    for (const [key, name] of Object.entries(PANEL_KEYS)) {
      const value = parts.get(prefix + key);
      if (value !== null && Object.hasOwn(known[name], value)) panel[name] = value;
    }
    panel.layer = number(`${prefix}l`, 1, 1000);
    panel.head = number(`${prefix}h`, 0, 1000) ?? 0;
    const model = number(`${prefix}c`, 1, doc.models.length);
    panel.model = model === null ? null : model - 1;
  });
  state.filter = parts.get("show") ?? "all";
  state.search = parts.get("text") ?? "";
}
