// "Save PNG" draws the view on a canvas at twice the size.

const PAGE = { margin: 24, width: 640, gap: 32, line: 20 };

function wrapped(context, text, width) {
  const lines = [""];
  for (const word of text.split(/\s+/)) {
    const longer = `${lines.at(-1)} ${word}`.trim();
    if (context.measureText(longer).width > width && lines.at(-1) !== "") lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

const numbers = (element, ...names) => names.map((name) => Number(element.getAttribute(name)));

// The veil of an SVG mask: as opaque as the mask is white.
function veilOf(panel, paper, opacity) {
  const [width, height] = panel.size;
  const veil = make("canvas", { width: Math.round(2 * width), height: Math.round(2 * height) });
  const context = veil.getContext("2d");
  context.scale(2, 2);
  context.fillStyle = paper;
  for (const rect of panel.layers.veil.children) {
    const [x, y, w, h] = numbers(rect, "x", "y", "width", "height");
    const fill = rect.getAttribute("fill");
    const white = fill === "white" ? 1 : fill === "black" ? 0 : Number(fill.match(/\d+/)[0]) / 255;
    context.clearRect(x, y, w, h);
    context.globalAlpha = white * opacity;
    context.fillRect(x, y, w, h);
  }
  return veil;
}

function drawShapes(context, group) {
  for (const shape of group.children) {
    const style = getComputedStyle(shape);
    const [x, y, w, h] = numbers(shape, "x", "y", "width", "height");
    if (shape.tagName === "text") {
      context.font = `${shape.getAttribute("font-size")}px system-ui, sans-serif`;
      context.fillStyle = style.fill;
      context.fillText(shape.textContent, x, y, Number(shape.getAttribute("textLength")));
      continue;
    }
    if (style.fill !== "none") {
      context.fillStyle = style.fill;
      context.fillRect(x, y, w, h);
    }
    if (style.stroke !== "none") {
      context.strokeStyle = style.stroke;
      context.lineWidth = Number.parseFloat(style.strokeWidth);
      context.setLineDash(style.strokeDasharray === "none" ? [] : style.strokeDasharray.split(",").map(Number.parseFloat));
      context.strokeRect(x, y, w, h);
      context.setLineDash([]);
    }
  }
}

// Draws one panel from the top left corner on; returns the y coordinate of its lower edge.
function drawPanel(context, panel, photoImage, inks) {
  let y = 0;
  const say = (text, font, ink) => {
    context.font = font;
    context.fillStyle = ink;
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    for (const line of wrapped(context, text, PAGE.width)) {
      y += PAGE.line;
      context.fillText(line, 0, y);
    }
  };
  const model = doc.models[panel.view.model];
  if (doc.models.length > 1) say(model.name, "13px system-ui, sans-serif", inks.grey);
  say(`${verdictOf(panel.view)} ${rightness(panel.view)}`, "bold 15px system-ui, sans-serif", inks.ink);
  say(panel.said.textContent, "13px system-ui, sans-serif", inks.grey);
  y += 10;
  const [width, height] = panel.size;
  context.save();
  context.translate(0, y);
  context.drawImage(photoImage, 0, 0, width, height);
  context.drawImage(veilOf(panel, inks.paper, inks.veil), 0, 0, width, height);
  drawShapes(context, panel.layers.boxes);
  drawShapes(context, panel.layers.labels);
  context.restore();
  y += height + 14;
  let x = 0;
  context.textBaseline = "alphabetic";
  for (const button of panel.words.children) {
    const text = button.firstChild.textContent;
    const weight = button.lastChild.textContent;
    context.font = "11px system-ui, sans-serif";
    const least = context.measureText(weight).width;
    context.font = "15px system-ui, sans-serif";
    const w = Math.max(context.measureText(text).width, least) + 12;
    if (x > 0 && x + w > PAGE.width) [x, y] = [0, y + 46];
    const style = getComputedStyle(button);
    context.fillStyle = style.backgroundColor;
    context.fillRect(x, y, w, 24);
    if (button.classList.contains("on")) {
      context.strokeStyle = inks.mark;
      context.lineWidth = 2;
      context.strokeRect(x, y, w, 24);
    }
    context.fillStyle = style.color;
    context.fillText(text, x + 6, y + 17);
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = inks.grey;
    context.fillText(weight, x + 6, y + 37);
    x += w + 4;
  }
  y += 58;
  const { shown, marks } = panel.matrix;
  const cell = cellFor(shown.matrix.columns, PAGE.width);
  context.save();
  context.translate(0, y);
  drawMatrix(context, shown, cell, { ...marks, cursor: null }, inks);
  context.restore();
  return y + matrixSize(shown.matrix, cell)[1];
}

async function savePicture() {
  const image = new Image();
  image.src = photo().src;
  await image.decode();
  const inks = { ink: themed("ink"), grey: themed("grey"), mark: themed("mark"), paper: themed("paper"), veil: 0.62 };
  const shown = panels.slice(0, shownPanels().length);
  const width = 2 * PAGE.margin + shown.length * PAGE.width + (shown.length - 1) * PAGE.gap;
  // The height is known once it is drawn, so it is drawn twice.
  const draw = (context) => {
    context.fillStyle = inks.ink;
    context.font = "bold 18px system-ui, sans-serif";
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    let y = PAGE.margin;
    for (const line of wrapped(context, `${photo().name} · “${pair().text}”`, width - 2 * PAGE.margin)) {
      y += 22;
      context.fillText(line, PAGE.margin, y);
    }
    let bottom = y;
    shown.forEach((panel, i) => {
      context.save();
      context.translate(PAGE.margin + i * (PAGE.width + PAGE.gap), y + 8);
      bottom = Math.max(bottom, y + 8 + drawPanel(context, panel, image, inks));
      context.restore();
    });
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = inks.grey;
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    context.fillText([doc.notice, quantisation()].filter(Boolean).join(" "), PAGE.margin, bottom + 28, width - 2 * PAGE.margin);
    return bottom + 28 + PAGE.margin;
  };
  const canvas = make("canvas", { width: 10, height: 10 });
  const height = draw(canvas.getContext("2d"));
  canvas.width = 2 * width;
  canvas.height = Math.ceil(2 * height);
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.fillStyle = inks.paper;
  context.fillRect(0, 0, width, height);
  draw(context);
  const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
  const link = make("a", { href: URL.createObjectURL(blob), download: `explore-${photo().name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "-")}.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  speak(`Saved ${link.download}, ${canvas.width} by ${canvas.height} pixels`);
}
