// The scale's colours (as in Rust's pictures), and those of the theme where a canvas needs them.
const PALETTE = doc.palette.map((hex) => [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16)));

function colourAt(position) {
  const place = Math.min(Math.max(position, 0), 1) * (PALETTE.length - 1);
  const low = Math.min(Math.floor(place), PALETTE.length - 2);
  return PALETTE[low].map((value, i) => Math.round(value + (PALETTE[low + 1][i] - value) * (place - low)));
}

const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

// Black or white, whichever reads better on a colour.
function inkOn(rgb) {
  const [r, g, b] = rgb.map((value) => {
    const v = value / 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

// A colour of the style sheet as the current theme resolves it.
function themed(name) {
  const probe = byId("tip");
  probe.style.color = `var(--${name})`;
  const colour = getComputedStyle(probe).color;
  probe.style.color = "";
  return colour;
}
