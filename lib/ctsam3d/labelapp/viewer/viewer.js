// The page: what the panel, the keys and the mouse do to the study that is open.

import { fileLayout, sameGrid, union, voxelMl } from "./geometry.js";
import { compose, masksOf } from "./labelmap.js";
import { writeLabels } from "./nifti.js";
import { drawStructures, Picker, words } from "./panel.js";
import { Scene } from "./scene.js";
import * as server from "./server.js";
import { Structures } from "./structures.js";
import { Work } from "./work.js";

const $ = (id) => document.getElementById(id);
const state = {
  info: null, // of the server
  studies: { images: [], colours: {} },
  image: "", // id of the open study
  grid: null, // its { shape, affine } as the server has it
  structures: new Structures([], {}),
  unsaved: false,
  opening: null, // an AbortController
  shown: true, // masks
  window: [-160, 240],
};

const scene = new Scene($("scan"), $("marks"), {
  onClick: (ijk, positive) => click(ijk, positive),
  onMove: (ijk, value) => ($("place").textContent = `voxel ${ijk.join(", ")} · ${Math.round(value)} HU`),
});
const work = new Work({ segment, apply, failed, changed: drawState });
const studyPicker = new Picker($("study-filter"), $("studies"), { choose: open });
const namePicker = new Picker($("name-filter"), $("names"), { choose: activate, create: (name) => activate(name) });

// ---- messages ------------------------------------------------------------------------------------------------------

function say(text, kind = false) {
  $("message").hidden = !text;
  $("message").classList.toggle("kind", kind);
  $("message").firstElementChild.textContent = text;
}

/** Runs what a button does; what goes wrong is said. */
async function attempt(action) {
  try {
    say("");
    return await action();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message || String(error));
    return undefined;
  }
}

// ---- studies -------------------------------------------------------------------------------------------------------

async function loadStudies() {
  state.studies = await server.studies();
  drawStudies();
}

function drawStudies() {
  const { images } = state.studies;
  const done = images.filter((image) => image.final).length;
  $("study-count").textContent = images.length ? `${done} of ${images.length} labelled` : "";
  studyPicker.set(
    images.map(({ id, final }) => ({ id, text: id, tail: final ? "labelled" : "" })),
    state.image,
  );
}

function mayLeave() {
  return !state.unsaved || confirm("What you did in this study is not saved. Leave it all the same?");
}

function open(image) {
  if (image === state.image || !mayLeave()) return undefined;
  return attempt(() => show(image));
}

async function show(image) {
  state.opening?.abort();
  const opening = (state.opening = new AbortController());
  leave();
  state.image = image;
  drawStudies();
  const waiting = (text) => {
    $("empty").hidden = false;
    $("empty-text").textContent = text;
  };
  try {
    waiting(`Loading ${image} …`);
    const progress = (share) => opening.signal.aborted || waiting(`Loading ${image} … ${Math.round(100 * share)} %`);
    const [grid, file] = await Promise.all([server.grid(image), server.scan(image, progress, opening.signal)]);
    const saved = grid.final ? await server.finalLabel(image) : null;
    if (opening.signal.aborted) return;
    await scene.show(file.name, file.buffer, state.window);
    if (opening.signal.aborted) return;
    if (!sameGrid(scene.grid.shape, scene.grid.affine, grid.shape, grid.affine)) {
      throw new Error(`The page and the server understand the geometry of ${image} in two ways, so clicks would land elsewhere.`);
    }
    state.grid = grid;
    if (saved) restore(saved);
    $("empty").hidden = true;
    history.replaceState(null, "", `#image=${encodeURIComponent(image)}`);
    document.title = `${image} - CT-SAM3D viewer`;
  } catch (error) {
    if (opening.signal.aborted) return;
    leave();
    drawStudies();
    waiting("Choose a study.");
    throw error;
  } finally {
    drawAll();
  }
}

function leave() {
  work.stop();
  scene.clear();
  Object.assign(state, { image: "", grid: null, unsaved: false });
  state.structures = new Structures(state.info?.models?.ctsam3d?.labels ?? [], state.studies.colours);
  $("timing").textContent = $("place").textContent = "";
}

/** Takes over the final label of the study, with its clicks where this page has saved it. */
function restore({ labels, box, reply }) {
  const named = new Map((reply.info.label_info ?? []).map(({ name, idx }) => [Number(idx), String(name)]));
  for (const [value, mask] of masksOf(labels.voxels, box)) {
    const structure = state.structures.add(named.get(value) ?? `label_${value}`, value);
    const clicks = reply.info.viewer_clicks?.[structure.name] ?? [];
    Object.assign(structure, { mask, origin: "saved" });
    structure.clicks = clicks.map(([i, j, k, positive]) => ({ ijk: [i, j, k], positive: Boolean(positive) }));
    structure.answered = [...structure.clicks];
  }
  state.structures.active = state.structures.list.at(-1) ?? null;
  drawColours();
  scene.paint(box, state.structures.layers(true));
}

async function next() {
  if (!mayLeave()) return;
  await attempt(async () => {
    const { id: image, reason } = await server.nextSample($("strategy").value);
    if (!image) say(`There is no next study: ${reason}.`, true);
    else if (image === state.image) say("This is the only study without a label. Save it first.", true);
    else await show(image);
  });
}

// ---- structures ----------------------------------------------------------------------------------------------------

function activate(name) {
  if (!state.grid) return say("Choose a study first.", true);
  return attempt(() => {
    state.structures.active = state.structures.add(name);
    drawAll();
    $("scan").focus();
  });
}

function toggle(structure) {
  structure.visible = !structure.visible;
  repaint(structure.mask?.box);
  drawAll();
}

function remove(structure) {
  if (structure.mask && !confirm(`Remove ${words(structure.name)}, its clicks and its mask?`)) return;
  work.forget(structure);
  state.structures.remove(structure);
  state.unsaved ||= Boolean(structure.mask);
  repaint(structure.mask?.box);
  drawAll();
}

function click(ijk, positive) {
  const { active } = state.structures;
  if (!state.grid) return;
  scene.goTo(ijk);
  if (!active) return say("Choose a structure first, or type a new name.", true);
  const objection = active.click(ijk, positive);
  say(objection, true);
  if (!objection) changed(active);
}

function changed(structure) {
  state.unsaved = true;
  structure.visible = true;
  state.structures.raise(structure);
  work.ask(structure);
  drawAll();
}

function undo() {
  const { active } = state.structures;
  if (!active?.clicks.length) return;
  active.undo();
  changed(active);
}

function redo() {
  const { active } = state.structures;
  if (!active?.undone.length) return;
  active.redo();
  changed(active);
}

function clearClicks() {
  const { active } = state.structures;
  while (active?.clicks.length) active.undo();
  if (active) changed(active);
}

// ---- the server's answers ------------------------------------------------------------------------------------------

function segment(structure, signal) {
  const question = {
    name: structure.name,
    named: structure.named,
    positive: structure.positive(),
    negative: structure.negative(),
    expand: $("expand").checked,
  };
  structure.asked = [...structure.clicks];
  return server.segment(state.image, question, signal);
}

function apply(structure, answer, seconds) {
  const before = structure.mask?.box;
  structure.mask = answer ? ([...masksOf(answer.labels.voxels, answer.box).values()][0] ?? null) : null;
  structure.reply = answer?.reply ?? null;
  structure.origin = "";
  structure.answered = answer ? structure.asked : [];
  state.unsaved = true;
  repaint(union(before, structure.mask?.box));
  $("timing").textContent = answer ? timing(structure, seconds) : "";
  drawAll();
}

function timing({ name, reply }, seconds) {
  const said = [`${seconds.toFixed(2)} s`, `server ${reply.latencies.total.toFixed(2)} s`, `${reply.patches} patch${reply.patches === 1 ? "" : "es"}`];
  if (reply.expansion?.[name]?.ended === "taken back") said.push("spreading taken back");
  const { quality } = reply.confidence?.[name] ?? {}; // the DSC that the model expects of its mask
  if (typeof quality === "number") said.push(`confidence ${Math.round(100 * quality)} %`);
  return said.join(" · ");
}

/** Goes back to the clicks that the server has answered. */
function failed(structure, error) {
  const kept = structure.answered ?? [];
  const taken = structure.clicks.length > kept.length ? " The click is taken back." : "";
  structure.clicks = [...kept];
  say(error.message + taken);
  drawAll();
}

// ---- saving --------------------------------------------------------------------------------------------------------

const save = () =>
  attempt(async () => {
    await work.settled();
    const { image, grid, structures } = state;
    const saved = structures.list.filter((structure) => structure.mask);
    if (!saved.length) return say("There is nothing to save yet.", true);
    drawBusy("Saving …");
    const voxels = new Uint8Array(grid.shape.reduce((a, b) => a * b));
    const region = saved.map((structure) => structure.mask.box).reduce(union);
    compose(voxels, fileLayout(grid.shape), region, structures.layers(false));
    const clicks = saved.map(({ name, clicks }) => [name, clicks.map(({ ijk, positive }) => [...ijk, Number(positive)])]);
    const params = {
      label_info: saved.map(({ name, value }) => ({ name, idx: value })),
      viewer_clicks: Object.fromEntries(clicks),
    };
    try {
      await server.save(image, await writeLabels(voxels, grid.shape, grid.affine), params);
    } finally {
      drawState();
    }
    if (state.image === image) state.unsaved = false;
    drawAll();
    $("status").textContent = `Saved ${saved.length} structure${saved.length > 1 ? "s" : ""} as the final label.`;
    await loadStudies();
  });

// ---- drawing -------------------------------------------------------------------------------------------------------

function repaint(region) {
  if (region && state.grid) scene.paint(region, state.structures.layers(true));
}

function drawColours() {
  scene.setColours(state.structures.list, state.shown ? Number($("opacity").value) / 100 : 0);
}

function drawAll() {
  const { structures } = state;
  const used = new Set(structures.list.map((structure) => structure.name));
  const { colours } = state.studies;
  namePicker.set(
    structures.names.map((name) => ({ id: name, text: words(name), colour: colours[name], tail: used.has(name) ? "•" : "" })),
    structures.active?.name,
  );
  drawStructures($("structures"), structures, state.grid ? voxelMl(state.grid.affine) : 0, {
    choose: (structure) => activate(structure.name),
    toggle,
    remove,
  });
  drawColours();
  scene.setClicks(structures.active?.clicks ?? []);
  const { active } = structures;
  $("hint").textContent = !state.grid ? "" : hint(active);
  $("undo").disabled = $("clear").disabled = !active?.clicks.length;
  $("redo").disabled = !active?.undone.length;
  $("save").disabled = !state.unsaved || !structures.list.some((structure) => structure.mask);
  $("save").textContent = state.grid && !state.unsaved && structures.list.length ? "Saved" : "Save";
  drawState();
}

function hint(active) {
  if (!active) return "Choose a structure, then click on it.";
  if (!active.clicks.length && active.mask) return "A click begins this structure anew.";
  if (!active.clicks.length) return `Left click on the ${words(active.name)}.`;
  return "Left click on what is missing, right click on what is too much.";
}

function drawBusy(text) {
  $("busy").hidden = !text;
  $("status").textContent = text;
}

function drawState() {
  const spreading = work.spreading.map((structure) => words(structure.name));
  if (work.busy) drawBusy("Working …");
  else if (spreading.length) drawBusy(`${spreading.join(", ")}: goes on spreading …`);
  else drawBusy("");
}

function setWindow(range) {
  state.window = range;
  scene.setWindow(range);
  for (const button of windows) {
    button.classList.toggle("chosen", button.dataset.window === range.join());
  }
}

function toggleMasks() {
  state.shown = !state.shown;
  drawColours();
}

function setExpand() {
  const { active } = state.structures;
  if (active?.clicks.length) changed(active);
}

// ---- keys and buttons ----------------------------------------------------------------------------------------------

const press = (id) => $(id).click();
const windows = [...document.querySelectorAll("[data-window]")];
const pressWindow = (n) => windows[n].click();

const KEYS = {
  p: () => state.grid && click(scene.crosshairIjk, true),
  n: () => state.grid && click(scene.crosshairIjk, false),
  e: () => press("expand"),
  m: toggleMasks,
  v: () => (scene.with3D = !scene.with3D),
  x: () => press("next"),
  1: () => pressWindow(0),
  2: () => pressWindow(1),
  3: () => pressWindow(2),
  4: () => pressWindow(3),
  "/": () => $("name-filter").focus(),
  "?": () => $("help").showModal(),
  ArrowLeft: () => scene.step([1, 0, 0]), // the patient's right is on the left of the picture
  ArrowRight: () => scene.step([-1, 0, 0]),
  ArrowUp: () => scene.step([0, 1, 0]),
  ArrowDown: () => scene.step([0, -1, 0]),
  PageUp: () => scene.step([0, 0, 1]),
  PageDown: () => scene.step([0, 0, -1]),
};
const CTRL_KEYS = { z: undo, y: redo, Z: redo, s: () => press("save") };

function onKey(event) {
  if (event.target.closest("input[type=search], select, dialog, .picker") || event.altKey) return;
  const table = event.ctrlKey || event.metaKey ? CTRL_KEYS : KEYS;
  const action = table[event.key] ?? table[event.key.toLowerCase()];
  if (event.target === $("scan")) event.stopPropagation(); // NiiVue has keys of its own
  if (!action) return;
  event.preventDefault();
  event.stopPropagation();
  action();
}

function listen() {
  window.addEventListener("keydown", onKey, { capture: true });
  window.addEventListener("beforeunload", (event) => state.unsaved && event.preventDefault());
  for (const kind of ["error", "unhandledrejection"]) {
    window.addEventListener(kind, (event) => say(`Something went wrong in this page: ${event.reason?.message ?? event.message}`));
  }
  const actions = { undo, redo, clear: clearClicks, save, next, "help-button": () => $("help").showModal() };
  for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
  $("message").querySelector("button").addEventListener("click", () => say(""));
  $("expand").addEventListener("change", setExpand);
  $("opacity").addEventListener("input", drawColours);
  for (const button of windows) {
    button.addEventListener("click", () => setWindow(button.dataset.window.split(",").map(Number)));
  }
}

async function start() {
  if (!document.createElement("canvas").getContext("webgl2")) {
    throw new Error("This browser cannot draw in 3D here: WebGL 2 is missing or switched off.");
  }
  await scene.start();
  listen();
  [state.info] = await Promise.all([server.info(), loadStudies()]);
  leave();
  const strategies = Object.keys(state.info.strategies ?? {});
  $("strategy").replaceChildren(...strategies.map((name) => new Option(name, name)));
  $("strategy").hidden = strategies.length < 2;
  drawAll();
  const asked = new URLSearchParams(location.hash.slice(1)).get("image");
  const { images } = state.studies;
  const image = asked ?? (images.length === 1 ? images[0].id : "");
  if (image) await show(image);
  else $("empty-text").textContent = images.length ? "Choose a study." : "There is no study in the server's folder yet.";
}

window.ctsam3d = { state, scene, work }; // for the browser's console, and for tests
attempt(start).then(() => document.body.classList.add("ready"));
