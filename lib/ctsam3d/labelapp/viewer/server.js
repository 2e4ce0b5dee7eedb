// What the page asks of the server. Every failure becomes a `ServerError` whose message can be shown.

import { readLabels } from "./nifti.js";

const BASE = new URL("..", document.baseURI); // the page lies one below the server's routes

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** A key for this window, so that two windows of one person do not undo each other's clicks; a reload keeps it. */
export function clientId() {
  let id = sessionStorage.getItem("ctsam3d-client");
  if (!id) {
    id = `viewer-${[...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("")}`;
    sessionStorage.setItem("ctsam3d-client", id);
  }
  return id;
}

async function ask(path, query = {}, options = {}) {
  const url = new URL(path, BASE);
  for (const [key, value] of Object.entries(query)) url.searchParams.set(key, value);
  let reply;
  try {
    reply = await fetch(url, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running, and is the network there?", 0);
  }
  if (!reply.ok) throw new ServerError(await reason(reply), reply.status);
  return reply;
}

async function reason(reply) {
  if (reply.status === 401) return "You are not signed in any more. Sign in again in another tab; nothing is lost here.";
  let said = {};
  try {
    said = await reply.json();
  } catch {
    // a proxy in between may answer in HTML
  }
  const detail = typeof said.detail === "string" ? said.detail : `status ${reply.status}`;
  if (reply.status >= 500) return `The server could not do that: ${detail} (request ${said.request_id ?? "unknown"})`;
  return `The server refused: ${detail}`;
}

export const info = async () => (await ask("info/")).json();
export const studies = async () => (await ask("viewer/studies")).json();
export const grid = async (image) => (await ask("viewer/study", { image })).json();

/** The scan's file: { name, buffer }; `progress` is told the share that has come, where the server says how much. */
export async function scan(image, progress, signal) {
  const reply = await ask("datastore/image", { image }, { signal });
  const disposition = reply.headers.get("content-disposition") ?? "";
  const encoded = /filename\*=utf-8''([^;]+)/i.exec(disposition)?.[1];
  const plain = /filename="([^"]+)"/.exec(disposition)?.[1];
  const total = Number(reply.headers.get("content-length"));
  const pieces = [];
  let come = 0;
  const reader = reply.body.getReader();
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    pieces.push(piece.value);
    come += piece.value.length;
    if (total) progress(come / total);
  }
  return { name: encoded ? decodeURIComponent(encoded) : (plain ?? image), buffer: await new Blob(pieces).arrayBuffer() };
}

/** Clicks of one structure: { labels, box, reply }. `named`: whether the model of named structures knows the name. */
export async function segment(image, { name, named, positive, negative, expand }, signal) {
  const clicks = named ? { [name]: positive } : { foreground: positive, label: name };
  const params = {
    ...clicks,
    background: negative,
    expand,
    client_id: clientId(),
    result_extension: ".nii.gz",
    result_dtype: "uint8",
    result_box: true,
    suggest: true,
  };
  const body = new FormData();
  body.set("params", JSON.stringify(params));
  const model = named ? "ctsam3d" : "ctsam3d_points";
  const reply = await ask(`infer/${model}`, { image }, { method: "POST", body, signal });
  return boxed(await reply.formData());
}

/** The final label of a scan: { labels, box, reply }. */
export async function finalLabel(image) {
  return boxed(await (await ask("viewer/label", { image })).formData());
}

async function boxed(form) {
  const params = form.get("params");
  const reply = JSON.parse(typeof params === "string" ? params : await params.text());
  const labels = await readLabels(form.get("image"));
  const [start, stop] = reply.result_box;
  if (labels.shape.some((n, axis) => n !== stop[axis] - start[axis])) {
    throw new ServerError("The server's label map is not of the size that it says.", 0);
  }
  return { labels, box: { start, stop }, reply };
}

export async function save(image, file, params) {
  const body = new FormData();
  body.set("label", file, "label.nii.gz");
  body.set("params", JSON.stringify(params));
  return (await ask("datastore/label", { image, tag: "final" }, { method: "PUT", body })).json();
}

/** The scan to be labelled next: its id, or, without one, the reason why there is none. */
export async function nextSample(strategy) {
  const headers = { "content-type": "application/json" };
  const body = JSON.stringify({ client_id: clientId() });
  return (await ask(`activelearning/${encodeURIComponent(strategy)}`, {}, { method: "POST", headers, body })).json();
}
