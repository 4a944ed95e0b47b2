// The page of experiments.explore: what is shown is a function of `view`, which the address after # keeps.
"use strict";

const STRIP = 9, POLL_MS = 700, SETTLE_MS = 120;
const view = { seed: 0, to: 1, t: 0, space: "z", class: 0, trunc: 1, layout: "images" };
const $ = (id) => document.getElementById(id);
let about = null, map = null, mapKey = "", settling = 0, turn = 0, mapTurn = 0, mapping = false;

function query(parts) {
  const values = { class: view.class, trunc: view.trunc, ...parts };
  if (!about.classes) delete values.class;
  if (!about.truncation) delete values.trunc;
  return new URLSearchParams(values).toString();
}

const imageAt = (t) => "/image.png?" + query({ seed: view.seed, to: view.to, t: t, space: view.space });
const imageOf = (seed) => "/image.png?" + query({ seed: seed });

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

function picture(source, text) {
  const img = document.createElement("img");
  img.src = source;
  img.alt = text;
  return img;
}

function captioned(img, ...lines) {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  caption.append(...lines.flatMap((line, at) => (at ? [document.createElement("br"), line] : [line])));
  figure.append(img, caption);
  return figure;
}

// What is shown.

function show() {
  for (const name of ["seed", "to"]) {
    $(name).value = view[name];
    $(name + "-slider").value = Math.min(view[name], 999);
  }
  for (const name of ["t", "class", "trunc"]) {
    $(name).value = view[name];
    $(name + "-value").textContent = view[name];
  }
  for (const name of ["space", "layout"]) document.querySelector(`input[name=${name}][value=${view[name]}]`).checked = true;
  history.replaceState(null, "", "#" + new URLSearchParams(view));
  $("picture").src = imageAt(view.t);
  $("picture-a").src = imageOf(view.seed);
  $("picture-b").src = imageOf(view.to);
  $("caption").textContent = `seed ${view.seed}${view.t > 0 ? `, ${Math.round(100 * view.t)} % of the way to seed ${view.to}` : ""}`;
  drawMap();
  clearTimeout(settling);
  settling = setTimeout(() => { showStrip(); showNearest(); followMap(); }, SETTLE_MS);
}

function showStrip() {
  const steps = Array.from({ length: STRIP }, (_, step) => (step / (STRIP - 1)).toFixed(3));
  $("strip").replaceChildren(...steps.map((t) => picture(imageAt(t), `${Math.round(100 * t)} % of the way`)));
}

async function showNearest() {
  const own = ++turn;
  let found;
  try {
    found = await ask("/nearest.json?" + query({ seed: view.seed, to: view.to, t: view.t, space: view.space }));
  } catch (error) {
    found = { state: "failed", why: error.message };
  }
  if (own !== turn) return;
  if (found.state !== "ready") {
    $("nearest").replaceChildren();
    $("nearest-note").textContent = found.state === "failed" ? found.why : found.doing + " ...";
    if (found.state === "working") setTimeout(() => own === turn && showNearest(), POLL_MS);
    return;
  }
  $("nearest-note").textContent =
    `In the neighbourhood of ${found.covered_by} of ${about.real} real images. Nearest first; distances also in radii of the real images' neighbourhoods.`;
  $("nearest").replaceChildren(...found.real.map((real) => {
    const label = real.label === null ? "" : `, class ${real.label}`;
    const image = picture("/real.png?index=" + real.index, "real image " + real.index);
    return captioned(image, `${real.distance.toFixed(2)} = ${real.radii.toFixed(2)} radii`, `no. ${real.index}${label}`);
  }));
  document.body.dataset.nearest = "ready";
}

// The map.

async function followMap() {
  const key = query({});
  if (key === mapKey && (map || mapping)) return;
  const own = ++mapTurn;
  mapKey = key;
  map = null;
  mapping = true;
  document.body.dataset.state = "mapping";
  $("worst").replaceChildren();
  while (own === mapTurn) {
    let found;
    try {
      found = await ask("/map.json?" + key);
    } catch (error) {
      found = { state: "failed", why: error.message };
    }
    if (own !== mapTurn) return;
    mapping = found.state !== "ready" && found.state !== "failed";
    if (found.state === "ready") return showMap(found);
    $("map-note").textContent = found.state === "failed" ? found.why : `${found.doing} ... ${Math.round(100 * found.done)} %`;
    drawMap();
    if (found.state === "failed") { document.body.dataset.state = "failed"; return; }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

function showMap(found) {
  map = found;
  const percent = (share) => (100 * share).toFixed(share < 0.01 ? 3 : 1) + " %";
  const whose = about.classes ? "real images of this class" : "real images", real = found.among_real;
  $("map-note").textContent = `Of all pairs of far latents, ${percent(found.collision)} have near images` +
    (real === null ? "." : `; of pairs of ${whose}, ${percent(real)} are as near.`);
  $("map-note").className = "note" + (real !== null && found.collision > 2 * real + 0.01 ? " bad" : "");
  $("worst").replaceChildren(...found.worst.map((pair) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(picture(imageOf(pair.seeds[0]), "seed " + pair.seeds[0]), " ", picture(imageOf(pair.seeds[1]), "seed " + pair.seeds[1]),
      document.createElement("br"), `${pair.seeds[0]} and ${pair.seeds[1]}: ${(pair.distance / found.radius).toFixed(2)} radii`);
    button.onclick = () => change({ seed: pair.seeds[0], to: pair.seeds[1], t: 0 });
    return button;
  }));
  drawMap();
  document.body.dataset.state = "ready";
  document.body.dataset.points = found.shares.length;
}

// Grey over orange to red, by the square root of the share, so that few collisions are seen.
function colour(share) {
  const stops = [[196, 203, 214], [232, 170, 110], [160, 20, 30]], place = 2 * Math.sqrt(share), at = Math.min(Math.floor(place), 1);
  const mixed = stops[at].map((value, channel) => Math.round(value + (place - at) * (stops[at + 1][channel] - value)));
  return `rgb(${mixed.join(" ")})`;
}

function places() {
  const points = map.layouts[view.layout], size = $("map").width;
  const reach = Math.max(...points.flat().map(Math.abs), 1e-9);
  return points.map(([x, y]) => [size / 2 + (0.47 * size * x) / reach, size / 2 - (0.47 * size * y) / reach]);
}

function drawMap() {
  const canvas = $("map"), context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (!map) return;
  const at = places(), order = map.shares.map((_, seed) => seed).sort((a, b) => map.shares[a] - map.shares[b]);
  for (const seed of order) {
    context.fillStyle = colour(map.shares[seed]);
    context.beginPath();
    context.arc(at[seed][0], at[seed][1], 4, 0, 2 * Math.PI);
    context.fill();
  }
  context.lineWidth = 2;
  context.font = "bold 16px system-ui, sans-serif";
  for (const [seed, name] of [[view.seed, "A"], [view.to, "B"]]) {
    if (seed >= at.length) continue;
    context.strokeStyle = context.fillStyle = "#000";
    context.beginPath();
    context.arc(at[seed][0], at[seed][1], 8, 0, 2 * Math.PI);
    context.stroke();
    context.fillText(name, at[seed][0] + 10, at[seed][1] - 8);
  }
}

$("map").addEventListener("click", (event) => {
  if (!map) return;
  const box = $("map").getBoundingClientRect(), scale = $("map").width / box.width;
  const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
  const distances = places().map(([px, py]) => Math.hypot(px - x, py - y));
  const seed = distances.indexOf(Math.min(...distances));
  change({ seed: seed, to: map.partners[seed], t: 0 });  // the far latent with the nearest image
});

// Changes.

function change(parts) {
  Object.assign(view, parts);
  show();
}

function clean(name, text) {
  const highest = { seed: 4294967295, to: 4294967295, class: Math.max(about.classes - 1, 0), t: 1, trunc: 1.5 }[name];
  const number = Math.min(Math.max(Number(text) || 0, 0), highest);
  return name === "t" || name === "trunc" ? Math.round(number * 1000) / 1000 : Math.floor(number);
}

function listen() {
  for (const name of ["seed", "to"]) {
    $(name).addEventListener("change", () => change({ [name]: clean(name, $(name).value) }));
    $(name + "-slider").addEventListener("input", () => change({ [name]: clean(name, $(name + "-slider").value) }));
  }
  for (const name of ["t", "class", "trunc"]) $(name).addEventListener("input", () => change({ [name]: clean(name, $(name).value) }));
  for (const name of ["space", "layout"]) {
    for (const input of document.querySelectorAll(`input[name=${name}]`)) input.addEventListener("change", () => change({ [name]: input.value }));
  }
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("random").addEventListener("click", () => change({ seed: Math.floor(Math.random() * 2 ** 31), to: Math.floor(Math.random() * 2 ** 31) }));
  $("swap").addEventListener("click", () => change({ seed: view.to, to: view.seed }));
}

async function start() {
  about = await ask("/about.json");
  document.title = $("title").textContent = `${about.run}, ${about.network}`;
  const classes = about.classes ? `, ${about.classes} classes` : "";
  $("about").textContent = `${about.resolution}x${about.resolution} pixels${classes}; compared with ${about.real} images of ${about.data}`;
  $("class").max = Math.max(about.classes - 1, 0);
  document.querySelector(".for-classes").hidden = !about.classes;
  document.querySelector(".for-truncation").hidden = !about.truncation;
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    const words = { space: ["z", "w"], layout: ["images", "w", "z"] }[name];
    if (words) view[name] = words.includes(text) ? text : view[name];
    else if (name in view) view[name] = clean(name, text);
  }
  listen();
  show();
}

start().catch((error) => {
  $("about").textContent = error.message;
  document.body.dataset.state = "failed";
});
