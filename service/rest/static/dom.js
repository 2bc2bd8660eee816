// Small helpers for making elements. Nothing here sets markup from text, so no answer can inject any.

export const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element: make("button", { type: "button", class: "quiet" }, "Remove"). */
export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** "index_tip" as people say it. */
export const spoken = (name) =>
  name.replace(/_(cmc|mcp|pip|dip|ip)$/, (_, joint) => ` ${joint.toUpperCase()}`).replaceAll("_", " ");

/** "Standard" */
export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Milliseconds with as many digits as mean something. */
export const ms = (value) => `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms`;

/** Offers a blob as a file. */
export function download(blob, name) {
  const address = URL.createObjectURL(blob);
  const link = make("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
