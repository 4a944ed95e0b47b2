// The page of experiments.explore: what is shown is a function of `view`, which the address after # keeps.
"use strict";

const STRIP = 9, POLL_MS = 700, SETTLE_MS = 120, SLIDER = 1000;
const FIRST = { seed: 0, to: 1, t: 0, space: "z", class: 0, trunc: 1, layout: "images" }, view = { ...FIRST };
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
    showSlider($(name + "-slider"), view[name], Number($(name).max));
  }
  for (const name of ["t", "class", "trunc"]) {
    $(name).value = view[name];
    $(name + "-value").textContent = view[name];
  }
  for (const name of ["space", "layout"]) document.querySelector(`input[name=${name}][value=${view[name]}]`).checked = true;
  $("picture").src = imageAt(view.t);
  $("picture-a").src = imageOf(view.seed);
  $("picture-b").src = imageOf(view.to);
  $("caption").textContent = `seed ${view.seed}${view.t > 0 ? `, ${Math.round(100 * view.t)} % of the way to seed ${view.to}` : ""}`;
  drawMap();
  clearTimeout(settling);
  settling = setTimeout(() => {
    history.replaceState(null, "", "#" + new URLSearchParams(view));  // browsers refuse more than a few a second
    showStrip();
    showNearest();
    followMap();
  }, SETTLE_MS);
}

// A slider shows the thousand seeds that hold its own, so that it never stands at another seed than the number beside it.
function showSlider(slider, seed, highest) {
  slider.min = seed - (seed % SLIDER);
  slider.max = Math.min(Number(slider.min) + SLIDER - 1, highest);
  slider.value = seed;
  slider.title = `seeds ${slider.min} to ${slider.max}`;
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
    `In the neighbourhood of ${found.covered_by} of ${about.real} real images. Nearest first; 1 radius is from that real image to its third neighbour.`;
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
    button.append(picture(imageOf(pair.seeds[0]), ""), " ", picture(imageOf(pair.seeds[1]), ""),  // the text names them
      document.createElement("br"), `${pair.seeds[0]} and ${pair.seeds[1]}: ${(pair.distance / found.radius).toFixed(2)} radii`);
    button.onclick = () => change({ seed: pair.seeds[0], to: pair.seeds[1], t: 0 });
    return button;
  }));
  drawMap();
  document.body.dataset.state = "ready";
  document.body.dataset.points = found.shares.length;
}

// From grey to red, by the square root of the share, so that few collisions are seen.
function colour(share, stops) {
  const place = 2 * Math.sqrt(share), at = Math.min(Math.floor(place), 1);
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
  sayPoint();
  if (!map) return;
  const style = getComputedStyle(document.body), stops = ["--none", "--some", "--all"].map((name) => style.getPropertyValue(name).trim().split(" ").map(Number));
  const at = places(), order = map.shares.map((_, seed) => seed).sort((a, b) => map.shares[a] - map.shares[b]);
  for (const seed of order) {
    context.fillStyle = colour(map.shares[seed], stops);
    context.beginPath();
    context.arc(at[seed][0], at[seed][1], 4, 0, 2 * Math.PI);
    context.fill();
  }
  context.lineWidth = 2;
  context.font = "bold 16px system-ui, sans-serif";
  for (const [seed, name] of [[view.seed, "A"], [view.to, "B"]]) {
    if (seed >= at.length) continue;
    context.strokeStyle = context.fillStyle = style.color;
    context.beginPath();
    context.arc(at[seed][0], at[seed][1], 8, 0, 2 * Math.PI);
    context.stroke();
    context.fillText(name, at[seed][0] + 10, at[seed][1] - 8);
  }
}

// What A is on the map: below it, and to a screen reader, which is told of the map as of a slider over its seeds.
function sayPoint() {
  let text = "no map yet";
  if (map && view.seed >= map.shares.length) text = `Seed ${view.seed} is not on the map, which shows seeds 0 to ${map.shares.length - 1}.`;
  else if (map) {
    const partner = map.partners[view.seed], share = (100 * map.shares[view.seed]).toFixed(1);
    text = `Seed ${view.seed}: ${share} % of its far latents have its image; ` + (partner === view.seed ? "none is far." : `the nearest image of them is that of seed ${partner}.`);
  }
  $("map-point").textContent = map ? text : "";
  const last = map ? map.shares.length - 1 : 0;
  for (const [name, value] of Object.entries({ valuemin: 0, valuemax: last, valuenow: Math.min(view.seed, last), valuetext: text })) {
    $("map").setAttribute("aria-" + name, value);
  }
}

// The far latent with the nearest image goes with a point.
const choose = (seed) => change({ seed: seed, to: map.partners[seed], t: 0 });

// The nearest point in that quarter of the plane; where there is none, the same.
function beside(seed, right, down) {
  const at = places(), [x, y] = at[seed];
  let found = seed, least = Infinity;
  at.forEach(([px, py], other) => {
    const along = (px - x) * right + (py - y) * down, across = Math.abs((px - x) * down) + Math.abs((py - y) * right), distance = Math.hypot(along, across);
    if (along > 0 && across <= along && distance < least) [found, least] = [other, distance];
  });
  return found;
}

const ARROWS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };

$("map").addEventListener("keydown", (event) => {
  if (!map || event.ctrlKey || event.altKey || event.metaKey) return;
  const last = map.shares.length - 1, seed = Math.min(view.seed, last);
  const ways = { Home: 0, End: last, PageUp: Math.min(seed + 1, last), PageDown: Math.max(seed - 1, 0) };
  if (event.key in ARROWS) choose(beside(seed, ...ARROWS[event.key]));
  else if (event.key in ways) choose(ways[event.key]);
  else return;
  event.preventDefault();  // the page does not scroll
});

$("map").addEventListener("click", (event) => {
  if (!map) return;
  const box = $("map").getBoundingClientRect(), scale = $("map").width / box.width;
  const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
  const distances = places().map(([px, py]) => Math.hypot(px - x, py - y));
  choose(distances.indexOf(Math.min(...distances)));
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

// The same address shows the same in an open page as in a new one: what it does not say is as at first.
function readAddress() {
  Object.assign(view, FIRST);
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    if (!Object.hasOwn(view, name)) continue;
    const words = { space: ["z", "w"], layout: ["images", "w", "z"] }[name];
    if (!words) view[name] = clean(name, text);
    else if (words.includes(text)) view[name] = text;
  }
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
  window.addEventListener("hashchange", () => { readAddress(); show(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
  $("swap").addEventListener("click", () => change({ seed: view.to, to: view.seed }));
}

async function start() {
  about = await ask("/about.json");
  document.title = $("title").textContent = `${about.run}, ${about.network}`;
  const classes = about.classes ? `, ${about.classes} classes` : "";
  $("about").textContent = `${about.width}x${about.height} pixels${classes}; compared with ${about.real} images of ${about.data}`;
  $("class").max = Math.max(about.classes - 1, 0);
  document.querySelector(".for-classes").hidden = !about.classes;
  document.querySelector(".for-truncation").hidden = !about.truncation;
  $("main").hidden = false;
  readAddress();
  listen();
  show();
}

start().catch((error) => {
  $("about").textContent = error.message;
  document.body.dataset.state = "failed";
});
