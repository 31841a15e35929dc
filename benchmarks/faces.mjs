// Draws the faces for faces.py, which copies this file beside its node_modules and runs it there.
//   node faces.mjs REQUEST.json OUT    writes OUT/pixels.bin, RGBA of 16 x 16 pixels one after another,
//                                      OUT/attributes.json and OUT/design.json, each part of the design alone
import fs from "node:fs";
import { createAvatar } from "@dicebear/core";
import * as style from "@dicebear/pixel-art";
import { Resvg } from "@resvg/resvg-js";
import * as components from "./node_modules/@dicebear/pixel-art/lib/components/index.js";

const SHAPE_RENDERING_CRISP_EDGES = 0;

// The published beards are masks filled with the hair's colour, so that they fade with it (black ones cannot be seen)
// and leave half-transparent pixels beside the neck. Filled with white they are solid, in the lighter hair colour.
const solidBeard = (svg) => svg.replace(/<path opacity="\.9"([^>]*?) fill="[^"]*"([^>]*)\/><\/mask>/, '<path$1 fill="#fff"$2/></mask>');

const pixels = (svg) => new Resvg(solidBeard(svg), { shapeRendering: SHAPE_RENDERING_CRISP_EDGES }).render().pixels;

const [requestFile, out] = process.argv.slice(2);
const { seed, count, options } = JSON.parse(fs.readFileSync(requestFile, "utf8"));

const rows = [];
const attributes = [];
for (let i = 0; i < count; i++) {
  const avatar = createAvatar(style, { ...options, seed: `${seed}-${i}` });
  rows.push(pixels(avatar.toString()));
  attributes.push(avatar.toJson().extra);
}
fs.writeFileSync(`${out}/pixels.bin`, Buffer.concat(rows));
fs.writeFileSync(`${out}/attributes.json`, JSON.stringify(attributes));

const design = {};
const black = Object.fromEntries(Object.keys(components).map((part) => [part, "#000000"]));
for (const [part, variants] of Object.entries(components)) {
  design[part] = {};
  for (const [name, draw] of Object.entries(variants)) {
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" width="16" height="16" fill="none" shape-rendering="crispEdges">${draw({}, black)}</svg>`;
    design[part][name] = [...pixels(svg)].filter((_, i) => i % 4 === 3); // the alpha of each pixel
  }
}
fs.writeFileSync(`${out}/design.json`, JSON.stringify(design));
