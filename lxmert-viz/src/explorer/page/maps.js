// Which matrix a view shows, and what it says of a word or a region.

// The four ways that a reader chooses from, each with the kinds of layers that it goes through, first to last.
const WAYS = {
  "language-vision": { name: "language → vision", sentence: "words attend to regions", of: ["language-to-vision"], rows: "words", columns: "regions" },
  "vision-language": { name: "vision → language", sentence: "regions attend to words", of: ["vision-to-language"], rows: "regions", columns: "words" },
  language: { name: "within language", sentence: "words attend to words", of: ["language", "language-self"], rows: "words", columns: "words" },
  vision: { name: "within vision", sentence: "regions attend to regions", of: ["vision", "vision-self"], rows: "regions", columns: "regions" },
};

const isThrough = (method) => method === "relevancy" || method === "rollout";

function stackName(panel) {
  return doc.method[panel.method].signed && panel.stance === "against" ? `${panel.method}-against` : panel.method;
}

// The layers of a panel's way, each with the stack and the index in it.
function layersOf(view, panel) {
  const layers = [];
  for (const direction of WAYS[panel.way].of) {
    const stack = view.maps.stacks.find((stack) => stack.method === stackName(panel) && stack.direction === direction);
    if (!stack) continue;
    for (let index = 0; index < stack.shape[0]; index += 1) {
      const name = isThrough(panel.method) ? "all layers" : `${doc.direction[direction].layer} ${index + 1} of ${stack.shape[0]}`;
      layers.push({ stack, index, heads: stack.shape[1], name });
    }
  }
  return layers;
}

const isThere = (view, panel) => layersOf(view, panel).length > 0;

// The layer that a panel shows; null in `panel.layer` is the last.
function layerOf(view, panel) {
  const layers = layersOf(view, panel);
  const number = Math.min(panel.layer ?? layers.length, layers.length);
  return layers[Math.max(number, 1) - 1];
}

// One head's map, or the mean over the heads where `head` is 0: `{rows, columns, values, error}`. A value is off by at most
// `error`, half a step.
function mapOf(view, layer, head) {
  const { stack, index, heads } = layer;
  const [, , rows, columns] = stack.shape;
  const size = rows * columns;
  const values = new Float64Array(size);
  const chosen = head > 0 && head <= heads ? [head - 1] : [...Array(heads).keys()];
  let error = 0;
  for (const one of chosen) {
    const number = index * heads + one;
    const step = stack.max[number] / stack.steps / chosen.length;
    const from = stack.offset + stack.width * number * size;
    for (let i = 0; i < size; i += 1) {
      const at = from + stack.width * i;
      values[i] += (view.bytes[at] + (stack.width > 1 ? 256 * view.bytes[at + 1] : 0)) * step;
    }
    error += step / 2;
  }
  return { rows, columns, values, error };
}

const matrixOf = (view, panel) => {
  const layer = layerOf(view, panel);
  return layer && mapOf(view, layer, panel.head);
};

const rowOf = (matrix, row) => matrix.values.slice(row * matrix.columns, (row + 1) * matrix.columns);
const columnOf = (matrix, column) => Float64Array.from({ length: matrix.rows }, (_, row) => matrix.values[row * matrix.columns + column]);

function meanOfRows(matrix, rows) {
  const mean = new Float64Array(matrix.columns);
  for (const row of rows) rowOf(matrix, row).forEach((value, i) => { mean[i] += value / rows.length; });
  return mean;
}

// The weights of a map: `{words, regions, errors, of}`, where a side without weights is null. `chosen` is `{word}`, `{region}` or neither,
// which asks for the whole sentence: attention and its gradient answer with the mean over its words, the others with the
// row of [CLS], where the score is read; maps whose rows are regions with the mean over all.
function weightsOf(view, panel, chosen) {
  const matrix = matrixOf(view, panel);
  if (!matrix) return { words: null, regions: null, errors: {}, of: "" };
  const way = WAYS[panel.way];
  const out = { words: null, regions: null, of: "", errors: { words: matrix.error, regions: matrix.error } };
  const { word, region } = chosen;
  const at = way.rows === "words" ? word : region;
  const across = way.columns === "words" ? word : region;
  if (at !== null && at < matrix.rows) {
    out[way.columns] = rowOf(matrix, at);
    out.of = "row";
  } else if (across !== null && way.rows !== way.columns && across < matrix.columns) {
    out[way.rows] = columnOf(matrix, across);
    out.of = "column";
  } else if (word === null && region === null) {
    const readsAll = panel.method === "attention" || panel.method === "gradient-attention";
    const rows = way.rows === "regions" ? [...Array(matrix.rows).keys()] : readsAll ? view.spoken : [0];
    out[way.columns] = meanOfRows(matrix, rows);
    out.of = way.rows === "regions" ? "mean over the regions" : readsAll ? "mean over the words" : "the row of [CLS]";
    if (way.columns === "words" && rows[0] === 0 && rows.length === 1) out.words[0] = 0;
    if (isThrough(panel.method) && panel.way === "language-vision") {
      const own = matrixOf(view, { ...panel, way: "language" });
      if (own) {
        out.words = rowOf(own, 0);
        out.words[0] = 0;
        out.errors.words = own.error;
      }
    }
  }
  return out;
}

// A scale from 0 to a round number. It reaches at least four times the even share, so that weights that are nearly even
// look even, and a weight stands out from half again that share on.
function scaleOf(weights) {
  const values = [...weights].filter(Number.isFinite);
  const even = values.reduce((sum, value) => sum + value, 0) / Math.max(values.length, 1);
  const least = even <= 1 ? Math.min(4 * even, 1) : 4 * even; // no share of 1 is larger than 1
  const largest = Math.max(least, ...values, 0);
  if (largest <= 0) return { max: 1, even: 0, position: () => 0, standsOut: () => false };
  const rough = largest / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= rough * 0.999);
  const max = Math.ceil(largest / step - 1e-6) * step;
  return {
    max,
    even,
    position: (value) => Math.min(Math.max(value / max, 0), 1) || 0,
    standsOut: (value) => value > 0 && value >= 1.5 * even,
  };
}

// A weight with three figures.
function short(value) {
  if (value === 0) return "0";
  if (Math.abs(value) < 0.001) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

// A weight with as many decimals as are exact, and its possible error.
function exact(value, error) {
  const digits = Math.min(Math.max(4, Math.ceil(-Math.log10(error))), 6);
  return `${value.toFixed(digits)} ± ${error.toFixed(digits)}`;
}

// How sharply a head looks: the mean over its rows of the largest share, 0..1.
function sharpness(map) {
  let sum = 0;
  for (let row = 0; row < map.rows; row += 1) {
    const values = rowOf(map, row);
    const total = values.reduce((a, b) => a + b, 0);
    sum += total > 0 ? Math.max(...values) / total : 0;
  }
  return sum / Math.max(map.rows, 1);
}
