// The document that Rust wrote, and the bytes of its maps.
const doc = JSON.parse(document.getElementById("data").textContent);
doc.direction = Object.fromEntries(doc.directions.map((direction) => [direction.slug, direction]));
doc.method = Object.fromEntries(doc.methods.map((method) => [method.slug, method]));

const byId = (id) => document.getElementById(id);

// An element with properties, attributes (whose names hold a dash, or `role`) and children.
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Inflates a view's maps once, and notes where each stack's bytes begin.
async function unpack(view) {
  if (view.bytes) return view;
  const deflated = Uint8Array.from(atob(view.maps.data), (character) => character.charCodeAt(0));
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let offset = 0;
  for (const stack of view.maps.stacks) {
    stack.offset = offset;
    stack.width = stack.steps > 255 ? 2 : 1;
    offset += stack.width * stack.shape.reduce((product, side) => product * side, 1);
  }
  view.bytes = bytes;
  return view;
}

// "3 red circle": numbers from 1, as in Rust's pictures.
function regionName(region, index) {
  return [index + 1, region.attribute, region.label].filter((part) => part !== null && part !== undefined).join(" ");
}
