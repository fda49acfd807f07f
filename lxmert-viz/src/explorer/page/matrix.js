// The whole map as a table of colours, with a cursor for the keyboard; and the same numbers as a table of text.

const MATRIX = { labels: 104, heads: 92, smallest: 11, largest: 30 };

// Cuts a text to a width, as the canvas measures it.
function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && context.measureText(`${text.slice(0, end)}…`).width > width) end -= 1;
  return `${text.slice(0, end)}…`;
}

// How large a cell is where `width` pixels are free.
const cellFor = (columns, width) =>
  Math.min(Math.max(Math.floor((width - MATRIX.labels - 4) / Math.max(columns, 1)), MATRIX.smallest), MATRIX.largest);

// Draws the map with its top left corner at 0, 0. `marks`: a row, a column and a cursor to outline.
function drawMatrix(context, table, cell, marks, inks) {
  const { matrix, rowNames, columnNames } = table;
  const scale = scaleOf(matrix.values);
  const [left, top] = [MATRIX.labels, MATRIX.heads];
  const size = Math.min(12, cell - 1);
  context.font = `${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (let row = 0; row < matrix.rows; row += 1) {
    context.textAlign = "right";
    context.fillStyle = row === marks.row ? inks.mark : inks.ink;
    context.fillText(fitted(context, rowNames[row], left - 8), left - 6, top + (row + 0.5) * cell);
    for (let column = 0; column < matrix.columns; column += 1) {
      context.fillStyle = css(colourAt(scale.position(matrix.values[row * matrix.columns + column])));
      context.fillRect(left + column * cell, top + row * cell, cell - (cell > 12 ? 1 : 0), cell - (cell > 12 ? 1 : 0));
    }
  }
  for (let column = 0; column < matrix.columns; column += 1) {
    context.save();
    context.translate(left + (column + 0.5) * cell, top - 6);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillStyle = column === marks.column ? inks.mark : inks.ink;
    context.fillText(fitted(context, columnNames[column], top - 10), 0, 0);
    context.restore();
  }
  context.strokeStyle = inks.mark;
  context.lineWidth = 2;
  if (marks.row !== null) context.strokeRect(left - 1, top + marks.row * cell - 1, matrix.columns * cell + 1, cell + 1);
  if (marks.column !== null) context.strokeRect(left + marks.column * cell - 1, top - 1, cell + 1, matrix.rows * cell + 1);
  if (marks.cursor) {
    context.strokeStyle = inks.ink;
    context.strokeRect(left + marks.cursor[1] * cell - 2, top + marks.cursor[0] * cell - 2, cell + 3, cell + 3);
  }
}

const matrixSize = (matrix, cell) => [MATRIX.labels + matrix.columns * cell + 2, MATRIX.heads + matrix.rows * cell + 2];

class MatrixView {
  // `onPoint({word, region} | null)` receives what a cell's row stands for while the pointer is on the cell, `onPick` when it is clicked.
  constructor(onPoint, onPick) {
    this.cursor = null;
    this.canvas = make("canvas", { tabIndex: 0, role: "img" });
    this.numbers = make("details", { className: "numbers" }, make("summary", {}, "Numbers"));
    this.table = make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": "The map's numbers" });
    this.copy = make("button", { type: "button" }, "Copy as tab-separated text");
    this.numbers.append(this.copy, this.table);
    this.element = make("div", { className: "matrix" }, make("div", { className: "scroll" }, this.canvas), this.numbers);
    this.onPoint = onPoint;
    this.onPick = onPick;
    this.canvas.addEventListener("pointermove", (event) => this.pointAt(this.cellAt(event), event));
    this.canvas.addEventListener("pointerleave", () => this.pointAt(null));
    this.canvas.addEventListener("click", (event) => this.pick(this.cellAt(event)));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => this.moveTo(null));
    this.numbers.addEventListener("toggle", () => this.fillTable());
    this.copy.addEventListener("click", () => copyText(this.asText(), "The numbers are copied"));
  }

  show(table, marks) {
    this.shown = table;
    this.marks = marks;
    const { matrix } = table;
    this.cell = cellFor(matrix.columns, this.element.clientWidth || 480);
    const [width, height] = matrixSize(matrix, this.cell);
    const dense = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * dense);
    this.canvas.height = Math.round(height * dense);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const context = this.canvas.getContext("2d");
    context.scale(dense, dense);
    drawMatrix(context, table, this.cell, { ...marks, cursor: this.cursor }, { ink: themed("ink"), mark: themed("mark") });
    this.canvas.setAttribute("aria-label", `${table.name}: ${matrix.rows} rows, ${matrix.columns} columns. Arrow keys read cells; the numbers are in a table below.`);
    if (this.numbers.open && this.filled !== matrix) this.fillTable();
  }

  cellAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - MATRIX.labels) / this.cell);
    const row = Math.floor((event.clientY - box.top - MATRIX.heads) / this.cell);
    const { matrix } = this.shown;
    return row >= 0 && column >= 0 && row < matrix.rows && column < matrix.columns ? [row, column] : null;
  }

  describe([row, column]) {
    const { matrix, rowNames, columnNames } = this.shown;
    return `${rowNames[row]} → ${columnNames[column]}: ${exact(matrix.values[row * matrix.columns + column], matrix.error)}`;
  }

  pointAt(cell, event) {
    showTip(cell && this.describe(cell), event);
    this.onPoint(cell);
  }

  pick(cell) {
    if (cell) this.onPick(cell);
  }

  moveTo(cell) {
    this.cursor = cell;
    if (this.shown) this.show(this.shown, this.marks);
    if (cell) speak(this.describe(cell));
    this.onPoint(cell);
  }

  key(event) {
    const { rows, columns } = this.shown.matrix;
    const [row, column] = this.cursor ?? [0, 0];
    const moves = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
      Home: [row, 0], End: [row, columns - 1], PageUp: [0, column], PageDown: [rows - 1, column],
    };
    if (event.key === "Enter" || event.key === " ") this.pick(this.cursor);
    else if (!moves[event.key]) return;
    else if (this.cursor) this.moveTo([Math.min(Math.max(moves[event.key][0], 0), rows - 1), Math.min(Math.max(moves[event.key][1], 0), columns - 1)]);
    else this.moveTo([0, 0]);
    event.preventDefault();
  }

  fillTable() {
    if (!this.numbers.open) return;
    const { matrix, rowNames, columnNames } = this.shown;
    this.filled = matrix;
    const head = make("tr", {}, make("td"), ...columnNames.map((name) => make("th", { scope: "col" }, name)));
    const rows = rowNames.map((name, row) =>
      make("tr", {}, make("th", { scope: "row" }, name), ...[...rowOf(matrix, row)].map((value) => make("td", {}, value.toFixed(4)))));
    this.table.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  }

  asText() {
    const { matrix, rowNames, columnNames } = this.shown;
    const lines = rowNames.map((name, row) => [name, ...[...rowOf(matrix, row)].map((value) => value.toFixed(5))].join("\t"));
    return [["", ...columnNames].join("\t"), ...lines].join("\n");
  }
}
