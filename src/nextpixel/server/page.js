"use strict";

// ---- light and dark: before anything is painted

const THEME = "nextpixel-theme", TOKEN = "nextpixel-token";

function remembered(store, key) {
  try { return store.getItem(key); } catch { return null; } // storage may be switched off
}

function remember(store, key, value) {
  try { store.setItem(key, value); } catch { /* kept until the page is closed */ }
}

const chosenTheme = remembered(localStorage, THEME);
if (chosenTheme) document.documentElement.dataset.theme = chosenTheme;

const isDark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

// ---- state

const state = {
  models: [],
  upload: Infinity, // maximum bytes of a request
  token: remembered(sessionStorage, TOKEN),
  picture: null, // {name, base64, blob} of the file
  seen: null, // canvas: the picture as the model sees it
  photo: null, // canvas: the same part of the picture at its own resolution
  kept: 16, // rows of pixels
  hole: new Uint8Array(), // 1 for each painted pixel
  before: [], // holes before each stroke, the latest last
  tool: null, // brush, eraser, rectangle
  heat: null, // {nats, values} of this picture and model
  drawing: null, // AbortController
  drawn: null, // settings of the drawn tiles; null: only the kept rows are shown
  known: null, // canvas: the part of `photo` that is not drawn
  tiles: [], // {canvas, context, view, button, scan, caption, rows, nats}; canvas has the model's pixels, view is shown
  shown: -1, // the tile in the dialog
};
const $ = (id) => document.getElementById(id);
const model = () => state.models[$("model").selectedIndex] ?? state.models[0];
const height = () => [model()?.side ?? 32].flat()[0]; // a side is a number, or height and width
const width = () => [model()?.side ?? 32].flat().at(-1);
const patch = () => model()?.patch ?? [1, 1]; // pixels of a token
const places = () => model()?.fit === "place"; // pixel art, which is shown as it is; photographs are shown smooth
const large = () => Math.max(1, Math.floor(1024 / Math.max(width(), height()))); // zoom of pictures to download
const isExact = () => !model().mode || model().mode === "plain"; // mode reported by the server
const many = (count, one, more = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : more}`;
const rounded = (value) => value.toFixed(2);

// ---- the server

class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

async function call(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (state.token) headers.Authorization = `Bearer ${state.token}`;
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Is nextpixel serve still running?", 0);
  }
  if (answer.ok) return answer;
  const { error } = await answer.json().catch(() => ({}));
  if (answer.status === 401) askForToken();
  throw new Refused(error?.message ?? `The server answered ${answer.status}.`, answer.status);
}

async function* events(answer) {
  const decoder = new TextDecoder();
  const reader = answer.body.getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new Refused("The connection to the server was lost.", 0);
      });
      text = (text + decoder.decode(value, { stream: !done })).replace(/\r\n/g, "\n");
      for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
        let name = "message";
        const data = [];
        for (const line of text.slice(0, end).split("\n")) {
          if (line.startsWith("event:")) name = line.slice(6).trim();
          else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        }
        if (data.length) yield { name, data: JSON.parse(data.join("\n")) };
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function askForToken() {
  $("token-form").hidden = false;
  if (state.token) $("start-error").textContent = "That token was not accepted.";
}

// ---- bytes

const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

function base64Of(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("The file could not be read."));
    reader.readAsDataURL(blob);
  });
}

function paint(context, y, values, rows = 1) { // values: red, green, blue and, with transparency, alpha of each pixel
  const pixels = context.createImageData(width(), rows);
  const channels = values.length / (rows * width());
  for (let i = 0; i < rows * width(); i++) {
    const pixel = values.slice(channels * i, channels * (i + 1));
    pixels.data.set(pixel, 4 * i);
    if (channels === 3) pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, y);
}

// ---- models

async function start() {
  $("start-error").textContent = "";
  try {
    const answer = await (await call("v1/models")).json();
    state.models = answer.models;
    await showSettings();
    $("n").max = answer.limits.n;
    $("n").defaultValue = Math.min($("n").defaultValue, answer.limits.n);
    state.upload = answer.limits.upload_mb * 1e6;
  } catch (error) {
    if (error.status !== 401) $("start-error").textContent = error.message;
    return;
  }
  const asked = !$("token-form").hidden;
  $("token-form").hidden = true;
  if (asked) $("complete").focus(); // it was in the form
  $("model").replaceChildren(...state.models.map((one) => new Option(one.id)));
  $("model-field").hidden = state.models.length < 2;
  await followLink();
  await showPictures();
}

async function showModel() {
  const one = model();
  const root = document.documentElement.style;
  root.setProperty("--snap", `${width() <= 64 ? width() : 1}px`); // whole screen pixels for each
  root.setProperty("--aspect", `${width()} / ${height()}`);
  const facts = { Name: one.id };
  if (one.trained_on) facts["Trained on"] = one.trained_on;
  if (one.steps) facts.Steps = one.steps.toLocaleString("en");
  facts.Parameters = one.parameters?.toLocaleString("en");
  facts["Resolution"] = `${width()} × ${height()} pixels`;
  const tiled = patch().some((side) => side > 1);
  if (tiled) facts.Tokens = `${width() / patch()[1]} × ${height() / patch()[0]}, of ${one.colors.toLocaleString("en")} kinds`;
  else facts.Colours = one.colors?.toLocaleString("en");
  $("facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value).flatMap(([name, value]) => {
    const [term, text] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, text.textContent] = [name, value];
    return [term, text];
  }));
  for (const input of $("sampling").querySelectorAll("[name$=colors]")) input.parentElement.hidden = tiled;
  $("sees").textContent = `${width()} × ${height()} pixels`;
  const size = Math.floor(Math.min(width(), height()) / 32);
  Object.assign($("radius"), { max: 4 * Math.max(size, 1), value: size });
  document.documentElement.classList.toggle("smooth", !places());
  $("thumbs").hidden = places(); // these are photographs
  const trained = one.trained_on ? `It was trained on ${one.trained_on}, and continues any picture in that style.`
    : "It continues any picture in the style of its training images, which are not recorded.";
  const limits = [
    places() ? `Pictures may have up to ${width()} × ${height()} pixels; they are not resized.`
      : `Pictures are resized to ${width()} × ${height()} pixels, which loses detail.`,
    tiled ? `It draws patches of ${patch()[1]} × ${patch()[0]} pixels, of ${one.colors.toLocaleString("en")} kinds, and blurs fine detail.`
      : `It has ${one.colors.toLocaleString("en")} colours; others are replaced by the nearest one.`,
    trained,
    "What it paints into a hole is plausible, not what was there.",
  ];
  if (one.objective === "masked") limits.unshift("It was trained on masked pixels and cannot draw; choose another model.");
  $("limits").replaceChildren(...limits.map((limit) => Object.assign(document.createElement("li"), { textContent: limit })));
  $("line").ariaValueMax = height() - patch()[0];
  $("rounded").hidden = isExact();
  $("rounding").textContent = one.mode === "int8" ? "uses int8 weights" : `rounds in another way (${one.mode})`;
  $("captioned").hidden = !one.words;
  suggestWords();
  Object.assign(state, { photo: null, seen: null, heat: null }); // of the model before
  showHeat(false);
  freshHole();
  clearDrawn();
  const picture = reading ?? state.picture;
  newest += 1; // what is being read was for the model before
  if (picture) await see(picture, state.kept / $("picture").height);
  else keepRows(Math.round(height() / 2));
  showHole();
}

// ---- the picture

let newest = 0; // a picture chosen later wins
let reading = null; // the picture chosen last, until the server has answered

async function see(picture, keep = 0.5) {
  const mine = ++newest;
  reading = picture;
  $("picture-error").textContent = "";
  try {
    const answer = await (await call("v1/encode", { image: picture.base64, model: model().id })).json();
    const bitmap = await createImageBitmap(new Blob([bytesOf(answer.image)], { type: "image/png" }));
    const whole = places() ? null : await createImageBitmap(picture.blob).catch(() => null);
    if (mine !== newest) return false;
    abandon();
    const canvas = $("picture");
    [canvas.width, canvas.height] = [width(), height()];
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    $("stage").classList.add("filled");
    canvas.ariaLabel = `${picture.name}, as the model sees it`;
    for (const place of ["draw-error", "surprise-error"]) $(place).textContent = "";
    Object.assign(state, { picture, seen: canvas, photo: whole && photoOf(whole), heat: null });
    freshHole();
    clearDrawn();
    keepRows(Math.round(keep * height()));
    showHole();
    showHeat(false);
    return true;
  } catch (error) {
    if (mine === newest && error.status !== 401) $("picture-error").textContent = error.message.replace(/^image: /, `${picture.name}: `);
    if (mine === newest && !state.seen) $("stage").classList.remove("filled");
    return false;
  } finally {
    if (mine === newest) reading = null;
  }
}

function photoOf(whole) { // the part that the model sees
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width() * large(), height() * large()];
  const scale = Math.min(whole.width / width(), whole.height / height());
  const [w, h] = model().fit === "squash" ? [whole.width, whole.height] : [scale * width(), scale * height()];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(whole, (whole.width - w) / 2, (whole.height - h) / 2, w, h, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function take(file) {
  if (!file || !state.models.length) return;
  try {
    if (file.size * 4 / 3 + 1000 > state.upload) { // as base64
      const most = Math.floor((state.upload * 3) / 4e6);
      throw new Error(`${file.name || "The picture"} has ${(file.size / 1e6).toFixed(1)} MB; this server accepts up to ${most} MB.`);
    }
    const picture = { name: file.name || "picture.png", base64: await base64Of(file), blob: file };
    if (await see(picture, state.kept / height())) mark(null);
  } catch (error) {
    $("picture-error").textContent = error.message;
  }
}

const mark = (button) => $("thumbs").querySelectorAll("button").forEach((one) => { one.ariaPressed = one === button; });

async function showPictures() {
  try {
    const answer = await (await call("v1/pictures")).json();
    const buttons = await Promise.all(answer.pictures.map(async (name) => {
      const blob = await (await call(`v1/pictures/${encodeURIComponent(name)}`)).blob();
      const button = Object.assign(document.createElement("button"), { type: "button", ariaPressed: "false" });
      button.ariaLabel = name;
      button.append(Object.assign(new Image(48, 48), { alt: "", src: URL.createObjectURL(blob) }));
      button.addEventListener("click", async () => {
        const picture = { name, base64: await base64Of(blob), blob };
        if (await see(picture, state.kept / height())) mark(button);
      });
      return button;
    }));
    $("thumbs").replaceChildren(...buttons);
    if (!state.picture && !reading && !$("thumbs").hidden) buttons[0]?.click();
  } catch {
    $("thumbs").replaceChildren(); // a convenience: without them a picture can still be dropped
  }
}

function keepRows(rows) {
  const step = patch()[0];
  state.kept = Math.min(Math.max(Math.round(rows / step) * step, 0), height() - step);
  $("stage").style.setProperty("--at", `${(100 * state.kept) / height()}%`);
  const text = keptText(state.kept, height(), hole());
  $("kept").textContent = text;
  $("line").ariaValueNow = state.kept;
  $("line").ariaValueText = text;
  if (!state.drawn) layTiles();
  showCommand();
}

function dragLine() {
  const rowAt = (event) => {
    const box = $("stage").getBoundingClientRect();
    return Math.round(((event.clientY - box.top) / box.height) * height());
  };
  let held = null;
  $("stage").addEventListener("pointerdown", (event) => {
    // On a touch screen only the line itself is dragged: elsewhere a finger scrolls the page.
    if (state.tool || hole() || event.button || (event.pointerType === "touch" && !$("line").contains(event.target))) return;
    held = event.pointerId;
    $("stage").setPointerCapture(held);
    event.preventDefault();
    $("line").focus({ focusVisible: false, preventScroll: true });
    keepRows(rowAt(event));
  });
  $("stage").addEventListener("pointermove", (event) => { if (event.pointerId === held) keepRows(rowAt(event)); });
  for (const end of ["pointerup", "pointercancel"]) $("stage").addEventListener(end, () => { held = null; });
  $("stage").addEventListener("click", (event) => {
    if (event.pointerType === "touch" && !state.tool && !hole()) keepRows(rowAt(event));
  });
  $("line").addEventListener("keydown", (event) => {
    // The line goes where the arrow points: down keeps more.
    const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: 4, PageUp: -4, Home: -height(), End: height() };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keepRows(state.kept + steps[event.key] * patch()[0]);
  });
}

// ---- the hole

const hole = () => (state.hole.includes(1) ? state.hole : null); // null: nothing is painted, so rows are kept
const area = (pixels) => pixels.reduce((sum, one) => sum + one, 0);
const keptText = (kept, rows, pixels) => pixels ? `${many(area(pixels), "pixel")} of ${pixels.length.toLocaleString("en")} to fill`
  : `${kept} of ${rows} rows kept`;

function freshHole() {
  Object.assign(state, { hole: new Uint8Array(width() * height()), before: [] });
}

function showHole() {
  const canvas = $("hole");
  [canvas.width, canvas.height] = [width(), height()];
  // Two colours by turns, so that one at least differs from the picture's.
  if (hole()) paint(canvas.getContext("2d"), 0, [...state.hole].flatMap((one, i) => {
    const even = (i + Math.floor(i / width())) % 2;
    return [...(even ? [52, 87, 213] : [200, 211, 247]), 255 * one];
  }), height());
  canvas.hidden = !hole();
  $("stage").classList.toggle("holed", Boolean(hole()));
  $("undo").ariaDisabled = !state.before.length;
  $("clear").ariaDisabled = !hole();
  keepRows(state.kept);
}

function changeHole(pixels) {
  state.before.push(state.hole);
  state.hole = pixels;
}

function tellHole() {
  showHole();
  announce($("kept").textContent);
}

function undo() {
  if (!state.before.length) return;
  state.hole = state.before.pop();
  tellHole();
}

function clearHole() {
  if (!hole()) return;
  changeHole(new Uint8Array(width() * height()));
  tellHole();
}

function chooseTool(tool) {
  state.tool = state.tool === tool ? null : tool;
  for (const button of $("tools").querySelectorAll("[aria-pressed]")) button.ariaPressed = button.value === state.tool;
  $("stage").classList.toggle("painting", Boolean(state.tool));
}

function fillBox(left, top, right, bottom, value) { // right and bottom are included
  for (let y = Math.max(top, 0); y <= Math.min(bottom, height() - 1); y++) {
    state.hole.fill(value, y * width() + Math.max(left, 0), y * width() + Math.min(right, width() - 1) + 1);
  }
}

function addBox() { // the field beside the tools, as --box has it
  const numbers = $("box").value.split(",").map((part) => (/^\s*\d+\s*$/.test(part) ? Number(part) : NaN));
  const [left, top, right, bottom] = numbers;
  const inside = numbers.length === 4 && left < right && right <= width() && top < bottom && bottom <= height();
  const expected = `Box: left, top, right and bottom are required, within 0, 0, ${width()}, ${height()}, as in 8, 8, 24, 24.`;
  $("box-error").textContent = !$("box").value.trim() || inside && state.seen ? "" : inside ? "Choose a picture first." : expected;
  if (!inside || !state.seen) return;
  $("box").value = "";
  changeHole(state.hole.slice());
  fillBox(left, top, right - 1, bottom - 1, 1);
  tellHole();
}

function dragTool() {
  let held = null, from = null; // from: where a rectangle began, or the last point of a stroke
  let before = null, own = null; // the hole before the drag, and with it
  const pixelAt = (event) => {
    const box = $("stage").getBoundingClientRect();
    const inside = (part, count) => Math.min(Math.max(Math.floor(part * count), 0), count - 1);
    return [inside((event.clientX - box.left) / box.width, width()), inside((event.clientY - box.top) / box.height, height())];
  };
  const stroke = (to) => {
    const radius = Number($("radius").value);
    const steps = Math.max(Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]), 1);
    for (let step = 0; step <= steps; step++) {
      const [x, y] = [0, 1].map((axis) => Math.round(from[axis] + ((to[axis] - from[axis]) * step) / steps));
      for (let up = -radius; up <= radius; up++) {
        const across = radius - Math.abs(up);
        fillBox(x - across, y + up, x + across, y + up, state.tool === "brush" ? 1 : 0);
      }
    }
    from = to;
  };
  const move = (event) => {
    if (event.pointerId !== held || state.hole !== own) return; // it was undone, or belonged to another picture
    const to = pixelAt(event);
    if (state.tool === "rectangle") {
      state.hole = own = before.slice();
      fillBox(...[0, 1].map((axis) => Math.min(from[axis], to[axis])), ...[0, 1].map((axis) => Math.max(from[axis], to[axis])), 1);
    } else stroke(to);
    showHole();
  };
  $("stage").addEventListener("pointerdown", (event) => {
    if (!state.tool || !state.seen || event.button || held !== null) return;
    event.preventDefault();
    held = event.pointerId;
    $("stage").setPointerCapture(held);
    from = pixelAt(event);
    before = state.hole;
    changeHole(own = before.slice());
    move(event);
  });
  $("stage").addEventListener("pointermove", move);
  for (const end of ["pointerup", "pointercancel"]) {
    $("stage").addEventListener(end, (event) => {
      if (event.pointerId !== held) return;
      held = null;
      tellHole();
    });
  }
}

function maskOf(pixels) { // a data: URL, white where it is filled
  const canvas = Object.assign(document.createElement("canvas"), { width: width(), height: height() });
  paint(canvas.getContext("2d"), 0, [...pixels].flatMap((one) => [255 * one, 255 * one, 255 * one]), height());
  return canvas.toDataURL("image/png");
}

function boxOf(pixels) { // left, top, right, bottom as for --box; null if it is no rectangle
  const [first, last] = [pixels.indexOf(1), pixels.lastIndexOf(1)];
  const [left, top, right, bottom] = [first % width(), Math.floor(first / width()), (last % width()) + 1, Math.floor(last / width()) + 1];
  const whole = pixels.every((one, i) => one === Number(i >= top * width() && i < bottom * width() && i % width() >= left && i % width() < right));
  return whole ? [left, top, right, bottom] : null;
}

// ---- surprise

const HEAT = [ // as in nextpixel score
  [0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164],
];

async function surprise() {
  $("surprise-error").textContent = "";
  if (!$("heat").hidden) return showHeat(false);
  if (!state.seen) {
    $("surprise-error").textContent = "Choose a picture first.";
    return;
  }
  const { picture } = state, name = model().id;
  try {
    state.heat ??= await (await call("v1/score", { image: picture.base64, model: name })).json();
    if (state.picture === picture && model().id === name) showHeat(true);
    else state.heat = null;
  } catch (error) {
    state.heat = null;
    if (error.status !== 401) $("surprise-error").textContent = error.message;
  }
}

function showHeat(on) {
  $("heat").hidden = $("scale").hidden = !on;
  $("stage").classList.toggle("heated", on);
  $("surprise").textContent = on ? "Show picture" : "Show surprise";
  if (!on) return;
  const values = state.heat.heat.flat();
  const top = [...values].sort((a, b) => a - b)[Math.floor(0.99 * (values.length - 1))] || 1; // ignores outliers
  const rgb = values.flatMap((value) => {
    const place = Math.min(Math.max(value / top, 0), 1) * (HEAT.length - 1);
    const below = Math.min(Math.floor(place), HEAT.length - 2);
    return HEAT[below].map((low, c) => Math.round(low + (place - below) * (HEAT[below + 1][c] - low)));
  });
  const canvas = $("heat");
  [canvas.width, canvas.height] = [width(), height()];
  paint(canvas.getContext("2d"), 0, rgb, height());
  const mean = `${rounded(state.heat.nats_per_pixel)} nats per pixel on average`;
  canvas.ariaLabel = `Where the picture surprises the model: ${mean}`;
  $("scale-top").textContent = top.toFixed(1);
  $("scale-mean").textContent = `mean ${rounded(state.heat.nats_per_pixel)} nats`;
  announce(mean);
}

// ---- settings

// The fields of a request that have a place of their own on the page; all others are shown as the server describes them.
const PLACED = ["model", "format", "timeout_seconds", "n", "seed", "stream", "image", "keep", "mask", "particles", "caption", "guidance"];

async function showSettings() {
  const { paths } = await (await call("openapi.json")).json();
  const { properties } = paths["/v1/complete"].post.requestBody.content["application/json"].schema;
  const shown = Object.entries(properties).filter(([name]) => !PLACED.includes(name));
  $("sampling").replaceChildren(...shown.map(([name, field]) => {
    const { type, minimum, exclusiveMinimum, maximum = "" } = field.anyOf?.[0] ?? field;
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { id: name.replaceAll("_", "-"), name, type: "text" });
    if (type !== "string") {
      const step = type === "integer" ? 1 : 0.01;
      const min = minimum ?? (exclusiveMinimum ?? 0) + step;
      Object.assign(input, { type: "number", inputMode: type === "integer" ? "numeric" : "decimal", min, max: maximum, step });
    }
    if (field.default == null) input.placeholder = type === "string" ? "" : "all";
    else Object.assign(input, { defaultValue: field.default, required: true });
    const help = Object.assign(document.createElement("span"), { textContent: field.description });
    label.append(`${field.title} `, input, help);
    return label;
  }));
}

const inputs = () => [...$("settings").querySelectorAll("input")];
const shownInputs = () => inputs().filter((input) => !input.closest("[hidden]"));
const sampling = () => [...$("sampling").querySelectorAll("label:not([hidden]) input")];

function settings() {
  for (const input of shownInputs()) {
    input.ariaInvalid = !input.checkValidity();
    if (input.checkValidity()) continue;
    input.closest("details")?.setAttribute("open", "");
    const label = (input.labels[0].firstChild.textContent || "").trim();
    const whole = input.step === "1" ? "a whole number" : "a number";
    const range = input.max ? `from ${input.min} to ${Number(input.max).toLocaleString("en")}` : `of ${input.min} or more`;
    $("settings-error").textContent = `${label}: ${whole} ${range} is required.`;
    input.focus();
    return null;
  }
  $("settings-error").textContent = "";
  const value = (input) => (input.value === "" ? null : input.type === "number" ? input.valueAsNumber : input.value);
  const chosen = Object.fromEntries(sampling().map((input) => [input.name, value(input)]));
  const caption = (model().words && $("caption").value.trim()) || null; // guidance needs one
  const steering = { caption, guidance: caption ? value($("guidance")) : 1 };
  return { n: value($("n")), seed: value($("seed")), model: model().id, ...steering, ...chosen };
}

// Words that begin like the last one, each as the whole text that choosing it makes.
function suggestWords() {
  const [, before, last] = /^(.*?)([^\s,]*)$/s.exec($("caption").value);
  const found = (model()?.words ?? []).filter((word) => word.startsWith(last.toLowerCase())).slice(0, 50);
  $("words").replaceChildren(...found.map((word) => new Option("", before + word)));
}

function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) && !word.startsWith("-") ? word : `'${word.replace(/'/g, "'\\''").replace(/^-/, "./-")}'`;
}

function commandOf(drawn) {
  const words = drawn.kept === null ? ["nextpixel sample"] : ["nextpixel complete", quoted(drawn.name)];
  const box = drawn.hole && boxOf(drawn.hole);
  if (drawn.hole) words.push(...(box ? ["--box", box.join(",")] : ["--mask mask.png"]));
  else if (drawn.kept !== null) words.push("--keep", drawn.kept / drawn.height);
  if (drawn.caption) words.push(...(drawn.kept === null ? [] : ["--caption"]), quoted(drawn.caption));
  if (drawn.guidance !== 1) words.push("--guidance", drawn.guidance);
  words.push("-n", drawn.n, "--seed", drawn.seed);
  for (const input of sampling()) {
    const value = drawn[input.name];
    if (String(value ?? "") !== input.defaultValue) words.push(`--${input.id}`, quoted(String(value)));
  }
  if (drawn.model !== "embedded") words.push("--model", quoted(drawn.model));
  if (isExact()) words.push("--speed exact");
  return words.join(" ");
}

function requestOf(drawn) { // curl, with the fields of the request that the page sends
  const text = (name, value) => ["--form-string", quoted(`${name}=${value}`)];
  const words = ["curl"];
  if (state.token) words.push("-H 'Authorization: Bearer TOKEN'");
  const name = /[;,"\\]/.test(drawn.name) ? `"${drawn.name.replace(/["\\]/g, "\\$&")}"` : drawn.name; // as curl reads it
  if (drawn.kept !== null) words.push("-F", quoted(`image=@${name}`));
  if (drawn.hole) words.push("-F mask=@mask.png");
  else if (drawn.kept !== null) words.push(...text("keep", drawn.kept / drawn.height));
  for (const name of ["n", "seed", "model", "caption", "guidance", ...sampling().map((input) => input.name)]) {
    const usual = name === "guidance" ? "1" : sampling().find((input) => input.name === name)?.defaultValue ?? "";
    if (String(drawn[name] ?? "") !== usual) words.push(...text(name, drawn[name]));
  }
  const path = drawn.kept === null ? "v1/sample" : "v1/complete";
  words.push("-F format=png -o drawn.png", quoted(new URL(path, document.baseURI).href));
  return words.join(" ");
}

function showCommand() {
  const whole = shownInputs().every((input) => input.checkValidity());
  if (!whole || !state.models.length) return;
  const now = { ...settings(), height: height(), kept: state.seen ? state.kept : null, name: state.picture?.name, hole: hole() };
  $("save-mask").hidden = !now.hole || Boolean(boxOf(now.hole));
  if (now.hole) $("save-mask").href = maskOf(now.hole);
  $("command").textContent = commandOf(now);
  $("curl").textContent = requestOf(now);
}

// ---- the link: the settings after # in the address, without picture, hole and token

function showLink() {
  const given = inputs().filter((input) => input.value !== input.defaultValue && input.checkValidity());
  const fields = new URLSearchParams(given.map((input) => [input.id, input.value]));
  if (state.models.length > 1) fields.set("model", model().id);
  fields.set("keep", state.kept / height());
  history.replaceState(null, "", `#${fields}`);
}

async function followLink() {
  const given = new URLSearchParams(location.hash.slice(1));
  const index = state.models.findIndex((one) => one.id === given.get("model"));
  if (index >= 0) $("model").selectedIndex = index;
  for (const input of inputs()) {
    input.value = given.get(input.id) ?? input.defaultValue;
    if (!input.checkValidity()) input.value = input.defaultValue;
    if (input.value !== input.defaultValue) input.closest("details")?.setAttribute("open", "");
  }
  await showModel();
  if (given.has("keep")) keepRows(Math.round(given.get("keep") * height()) || 0);
}

// ---- tiles

function layTiles() {
  const n = Math.min(Math.max($("n").valueAsNumber || 1, 1), $("n").max);
  while (state.tiles.length > n) state.tiles.pop().button.parentElement.remove();
  while (state.tiles.length < n) addTile(state.tiles.length);
  const columns = n < 5 ? 2 : n < 10 ? 3 : 4;
  const root = document.documentElement.style; // not on the tiles: there it would win over the small screens' rule
  root.setProperty("--columns", columns);
  root.setProperty("--columns-small", Math.min(n, 2));
  beginAll(state.seen ? state.kept : 0, state.seen && hole());
}

function addTile(index) {
  const item = document.createElement("li");
  const button = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
  const [canvas, view] = [document.createElement("canvas"), document.createElement("canvas")];
  const caption = Object.assign(document.createElement("span"), { className: "caption" });
  const scan = document.createElement("i");
  button.append(view, scan);
  item.append(button, caption);
  $("tiles").append(item);
  button.addEventListener("click", () => enlarge(index));
  state.tiles.push({ canvas, context: canvas.getContext("2d"), view, button, scan, caption });
}

function beginAll(kept, pixels) {
  const known = (state.known = state.photo && document.createElement("canvas"));
  if (known) {
    [known.width, known.height] = [state.photo.width, state.photo.height];
    const context = known.getContext("2d");
    context.drawImage(state.photo, 0, 0);
    if (!pixels) context.clearRect(0, kept * large(), known.width, known.height);
    pixels?.forEach((one, i) => { if (one) context.clearRect((i % width()) * large(), Math.floor(i / width()) * large(), large(), large()); });
  }
  state.tiles.forEach((tile) => begin(tile, kept, pixels));
}

function join(tile, target, zoom) { // the photograph where it is known, and what is drawn
  [target.width, target.height] = [width() * zoom, height() * zoom]; // which also empties it
  const context = target.getContext("2d");
  Object.assign(context, { imageSmoothingEnabled: !places(), imageSmoothingQuality: "high" });
  context.drawImage(tile.canvas, 0, 0, target.width, target.height);
  if (state.known) context.drawImage(state.known, 0, 0, target.width, target.height);
}

const show = (tile) => join(tile, tile.view, places() ? 1 : Math.ceil(large() / 2));

function begin(tile, kept, pixels) {
  [tile.canvas.width, tile.canvas.height] = [width(), height()]; // which also empties it
  if (pixels) {
    tile.context.drawImage(state.seen, 0, 0);
    pixels.forEach((one, i) => { if (one) tile.context.clearRect(i % width(), Math.floor(i / width()), 1, 1); });
  } else if (kept) tile.context.drawImage(state.seen, 0, 0, width(), kept, 0, 0, width(), kept);
  Object.assign(tile, { rows: kept, nats: null });
  tell(tile, "");
  scanAt(tile, kept);
  show(tile);
}

const scanAt = (tile, y) => tile.scan.style.setProperty("--at", `${(100 * y) / height()}%`);

function tell(tile, text) {
  const number = state.tiles.indexOf(tile) + 1;
  const value = tile.nats === null ? null : Object.assign(document.createElement("b"), { textContent: rounded(tile.nats) });
  tile.caption.replaceChildren(...(value ? [value, " nats per pixel"] : [text]));
  tile.button.ariaLabel = `Candidate ${number}: ${tile.caption.textContent || "not drawn yet"}. Enlarge`;
}

function clearDrawn() {
  state.drawn = null;
  layTiles();
  $("progress").value = 0;
  $("said").textContent = "";
}

// ---- drawing

const announce = (text) => { $("live").textContent = text; };

async function draw(complete) {
  if (state.drawing || !state.models.length) return;
  $("draw-error").textContent = "";
  if (complete && !state.seen) {
    $("draw-error").textContent = "Choose a picture first.";
    return;
  }
  const chosen = settings();
  if (!chosen) return;
  showLink();
  let kept = complete ? state.kept : 0;
  const pixels = complete ? hole() : null;
  const mine = (state.drawing = new AbortController());
  state.drawn = { ...chosen, height: height(), kept: complete ? kept : null, name: complete ? state.picture.name : "drawn", hole: pixels?.slice() };
  layTiles();
  beginAll(kept, pixels);
  busy(true);
  $("said").textContent = complete && kept ? "Reading the picture" : "Starting";
  const words = many(chosen.n, complete ? "completion" : "picture");
  announce(`Drawing ${words}.`);
  bringIntoView();

  const holed = pixels && new Set([...pixels.keys()].filter((i) => pixels[i]).map((i) => Math.floor(i / width()))).size;
  let rows = chosen.n * (holed ?? height() - kept);
  const body = { ...chosen, stream: true };
  if (complete) Object.assign(body, { image: state.picture.base64 }, pixels ? { mask: maskOf(pixels) } : { keep: kept / height() });
  let count = 0, first = 0, counted = 0, quarter = 0;
  try {
    for await (const { name, data } of events(await call(complete ? "v1/complete" : "v1/sample", body, mine.signal))) {
      mine.signal.throwIfAborted(); // rows that had come already
      if (name === "start" && !pixels && data.kept_rows !== kept) { // a token may cover several rows of pixels
        state.drawn.kept = kept = data.kept_rows;
        rows = chosen.n * (height() - kept);
        beginAll(kept);
      } else if (name === "row") {
        const tile = state.tiles[data.candidate];
        paint(tile.context, data.y, bytesOf(data.pixels));
        tile.rows = data.y + 1;
        show(tile);
        scanAt(tile, tile.rows);
        if (state.shown === data.candidate) paintLarge();
        const now = performance.now();
        count += 1;
        // The first row of each candidate waits for the prompt's prefill, so the pace is that of later rows.
        if (count <= chosen.n) [first, counted] = [now, count];
        const rate = count > counted ? (now - first) / (count - counted) : 0;
        $("progress").value = count / rows;
        const left = data.seconds_left ?? (rate ? (rate * (rows - count)) / 1000 : null);
        $("said").textContent = `${count} of ${rows} rows${left === null ? "" : `, ${timeLeft(left)}`}`;
        const passed = Math.floor((4 * count) / rows);
        if (passed > quarter && passed < 4) announce(["", "A quarter drawn.", "Half drawn.", "Three quarters drawn."][(quarter = passed)]);
      } else if (name === "waiting") {
        const left = data.seconds_left == null ? "" : `, ${timeLeft(data.seconds_left)}`;
        $("said").textContent = data.ahead ? `Waiting: ${many(data.ahead, "drawing")} before this one${left}` : "Starting";
      } else if (name === "error") {
        throw new Refused(data.message, 0);
      } else if (name === "done") {
        await Promise.all(data.images.map(async (image, i) => { // with the rows decided last, and the given pixels
          const whole = await createImageBitmap(new Blob([bytesOf(image)], { type: "image/png" }));
          if (state.drawing !== mine) return;
          const { context } = state.tiles[i];
          context.clearRect(0, 0, width(), height()); // half-transparent pixels would be drawn over themselves
          context.drawImage(whole, 0, 0);
          show(state.tiles[i]);
        }));
        mine.signal.throwIfAborted();
        data.nats.forEach((nats, i) => {
          state.tiles[i].nats = nats;
          tell(state.tiles[i]);
        });
        state.drawn.done = true;
        $("progress").value = 1;
        const text = `Drawn with seed ${data.seed ?? chosen.seed}`;
        $("said").textContent = text;
        const [low, high] = [Math.min(...data.nats), Math.max(...data.nats)];
        announce(`${text}: ${words}, ${low === high ? rounded(low) : `${rounded(low)} to ${rounded(high)}`} nats per pixel.`);
      }
    }
    if (!state.drawn?.done) throw new Refused("The server stopped before the pictures were finished.", 0);
  } catch (error) {
    if (state.drawing === mine) {
      const stopped = error.name === "AbortError";
      for (const tile of state.tiles) tell(tile, pixels ? "stopped" : tile.rows > kept ? `stopped after row ${tile.rows}` : "");
      $("said").textContent = stopped ? "Stopped" : "";
      if (stopped) announce("Stopped.");
      else if (error.status !== 401) $("draw-error").textContent = error instanceof Refused ? error.message : `The answer could not be read: ${error.message}`;
    }
  } finally {
    mine.abort();
    if (state.drawing === mine) {
      state.drawing = null;
      busy(false);
      if (state.shown >= 0) paintLarge();
    }
  }
}

function stop() {
  state.drawing?.abort();
}

function abandon() { // the picture or model has changed
  if (!state.drawing) return;
  stop();
  state.drawing = null;
  busy(false);
}

function timeLeft(seconds) {
  if (seconds < 1) return "nearly done";
  if (seconds < 90) return `about ${Math.ceil(seconds)} s left`;
  return `about ${Math.ceil(seconds / 60)} min left`;
}

function busy(on) {
  const hadFocus = document.activeElement === $("stop");
  $("tiles").classList.toggle("drawing", on);
  $("tiles").ariaBusy = on;
  for (const id of ["complete", "sample"]) $(id).ariaDisabled = on; // not disabled: that would lose the focus
  if (!on && hadFocus) $("complete").focus();
  $("stop").disabled = !on;
}

function bringIntoView() {
  const box = $("tiles").getBoundingClientRect();
  if (box.top < 0.6 * innerHeight && box.top >= 0) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("tiles").scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
}

// ---- one picture, large

function enlarge(index) {
  state.shown = index;
  paintLarge();
  if (!$("large").open) $("large").showModal();
}

function paintLarge() {
  const tile = state.tiles[state.shown];
  if (!tile) return $("large").close();
  const canvas = $("large-picture");
  join(tile, canvas, places() ? 1 : large());
  const title = `Candidate ${state.shown + 1} of ${state.tiles.length}`;
  canvas.ariaLabel = title;
  $("large-title").textContent = title;
  const facts = [tile.caption.textContent || (state.drawing ? "being drawn" : "not drawn yet")];
  if (state.drawn) facts.push(`seed ${state.drawn.seed}`, ...(state.drawn.kept === null ? [] : [keptText(state.drawn.kept, state.drawn.height, state.drawn.hole)]));
  $("large-said").textContent = facts.join(" · ");
  const [small, enlarged] = [1, large()].map((zoom) => `${width() * zoom} × ${height() * zoom}`);
  $("download").textContent = small;
  $("download").ariaLabel = `Download PNG, ${small}, the model's pixels`;
  $("download-large").textContent = `Download ${enlarged}`;
  $("download-large").ariaLabel = `Download PNG, ${enlarged}`;
  for (const id of ["download", "download-large"]) $(id).removeAttribute("href");
  if (state.drawing) return; // each row would encode two files
  const stem = (state.drawn?.name ?? state.picture?.name ?? "drawn").replace(/\.[^.]*$/, "");
  const base = `${stem}-seed${state.drawn?.seed ?? $("seed").value}-${state.shown + 1}`;
  const whole = document.createElement("canvas");
  join(tile, whole, large());
  Object.assign($("download"), { href: tile.canvas.toDataURL("image/png"), download: `${base}.png` });
  Object.assign($("download-large"), { href: whole.toDataURL("image/png"), download: `${base}-x${large()}.png` });
}

function turn(by) {
  state.shown = (state.shown + by + state.tiles.length) % state.tiles.length;
  paintLarge();
}

async function copy(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page served over plain http to another machine has no clipboard of that kind
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "unseen", readOnly: true });
    button.after(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const before = (button.dataset.label ??= button.textContent);
  button.textContent = done ? "Copied" : "Not copied";
  announce(done ? "Copied." : "The browser did not allow copying.");
  setTimeout(() => { button.textContent = before; }, 1500);
}

// ---- event listeners

document.addEventListener("DOMContentLoaded", () => {
  const on = (id, event, act) => $(id).addEventListener(event, act);
  const paintTheme = () => {
    const other = isDark() ? "Light" : "Dark";
    $("theme").textContent = other;
    $("theme").ariaLabel = `${other} theme`;
  };
  paintTheme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintTheme);
  on("theme", "click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    remember(localStorage, THEME, theme);
    paintTheme();
  });
  on("token-form", "submit", (event) => {
    event.preventDefault();
    const token = $("token").value.trim();
    if (/[^ -~]/.test(token)) { // which a header cannot hold
      $("start-error").textContent = "A token has only letters, digits and signs; something else was pasted with it.";
      return;
    }
    state.token = token;
    remember(sessionStorage, TOKEN, state.token);
    start();
  });
  on("model", "change", () => { abandon(); showModel(); });

  dragLine();
  dragTool();
  on("tools", "click", (event) => { if (event.target.matches("[aria-pressed]")) chooseTool(event.target.value); });
  on("undo", "click", undo);
  addEventListener("keydown", (event) => {
    if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.target.matches("input:not([type=range])")) return;
    event.preventDefault();
    undo();
  });
  on("clear", "click", clearHole);
  on("box", "change", addBox);
  on("surprise", "click", surprise);
  on("file", "change", () => { take($("file").files[0]); $("file").value = ""; });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (file) take(file);
  });
  const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!carriesFile(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files[0]);
  });

  on("settings", "submit", (event) => { event.preventDefault(); draw(true); });
  on("settings", "input", (event) => {
    if (event.target.ariaInvalid === "true") settings();
    if (event.target === $("caption")) suggestWords();
    if (event.target === $("n") && !state.drawn && $("n").checkValidity()) layTiles();
    showCommand();
  });
  on("new-seed", "click", () => { $("seed").value = Math.floor(Math.random() * 1e6); showCommand(); });
  on("sample", "click", () => draw(false));
  on("stop", "click", stop);
  on("copy", "click", () => copy($("command").textContent, $("copy")));
  on("copy-curl", "click", () => copy($("curl").textContent, $("copy-curl")));
  on("copy-link", "click", () => { showLink(); copy(location.href, $("copy-link")); });
  addEventListener("hashchange", () => { abandon(); if (state.models.length) followLink(); });

  on("previous", "click", () => turn(-1));
  on("next", "click", () => turn(1));
  on("close", "click", () => $("large").close());
  on("large", "close", () => { state.tiles[state.shown]?.button.focus(); state.shown = -1; });
  on("large", "click", (event) => { if (event.target === $("large")) $("large").close(); });
  on("large", "keydown", (event) => {
    if (event.key === "ArrowLeft") turn(-1);
    if (event.key === "ArrowRight") turn(1);
  });
  on("copy-seed", "click", () => copy(String(state.drawn?.seed ?? $("seed").value), $("copy-seed")));
  on("copy-command", "click", () => copy(state.drawn ? commandOf(state.drawn) : $("command").textContent, $("copy-command")));
  start();
});
