// The lists of the panel: what can be chosen, and the structures of the study.

const SHOWN = 300; // entries; whoever has more studies than that types a part of the name

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

export const css = (colour) => `rgb(${colour.join(",")})`;
export const words = (name) => name.replaceAll("_", " ");

/** A list that a search field filters. Entries: { id, text, tail, colour }; a new one where `create` is given. */
export class Picker {
  constructor(field, list, { choose, create }) {
    Object.assign(this, { field, list, choose, create, entries: [], chosen: "" });
    field.addEventListener("input", () => this.draw());
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") list.querySelector("li:not(.nothing)")?.click();
      if (event.key === "Escape") this.#leave();
      if (event.key === "ArrowDown") list.querySelector("li:not(.nothing)")?.focus();
    });
    list.addEventListener("keydown", (event) => {
      const next = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      if (!next && event.key !== "Enter") return;
      event.preventDefault();
      event.stopPropagation();
      if (next) (event.target[next] ?? field).focus();
      else event.target.click();
    });
  }

  set(entries, chosen) {
    Object.assign(this, { entries, chosen });
    this.draw();
    this.list.querySelector('[aria-selected="true"]')?.scrollIntoView({ block: "nearest" });
  }

  draw() {
    const wanted = this.field.value.trim().toLowerCase();
    const parts = words(wanted).split(/\s+/);
    const found = this.entries.filter(({ text }) => parts.every((part) => text.toLowerCase().includes(part)));
    const items = found.slice(0, SHOWN).map((entry) => this.#item(entry));
    const exact = this.entries.some(({ id, text }) => [id.toLowerCase(), text.toLowerCase()].includes(wanted));
    if (this.create && wanted && !exact) items.push(this.#newItem(this.field.value.trim()));
    if (found.length > SHOWN) items.push(make("li", { className: "nothing" }, `${found.length - SHOWN} more: type a part of the name`));
    if (!items.length) items.push(make("li", { className: "nothing" }, this.entries.length ? "Nothing of that name" : "None"));
    this.list.replaceChildren(...items);
  }

  #item({ id, text, tail, colour }) {
    const item = make("li", { role: "option", tabIndex: -1, title: text, onclick: () => this.#take(() => this.choose(id)) });
    item.setAttribute("aria-selected", String(id === this.chosen));
    if (colour) item.append(make("span", { className: "swatch", style: `background:${css(colour)}` }));
    item.append(make("span", { className: "text" }, text));
    if (tail) item.append(make("span", { className: "tail" }, tail));
    return item;
  }

  #newItem(name) {
    const choose = () => this.#take(() => this.create(name));
    return make("li", { role: "option", tabIndex: -1, onclick: choose }, make("span", { className: "text" }, `New: ${name}`));
  }

  #take(action) {
    this.#leave();
    action();
  }

  #leave() {
    this.field.value = "";
    this.field.blur();
    this.draw();
  }
}

/** The list of the study's structures, the newest work first. */
export function drawStructures(list, structures, ml, { choose, toggle, remove }) {
  const items = [...structures.list].sort((a, b) => a.value - b.value).map((structure) => {
    const { positive, negative } = { positive: structure.positive().length, negative: structure.negative().length };
    const clicks = positive + negative ? `+${positive}${negative ? ` −${negative}` : ""}` : structure.origin;
    const volume = structure.mask ? `${(structure.mask.count * ml).toFixed(structure.mask.count * ml < 10 ? 1 : 0)} ml` : "";
    const stop = (action) => (event) => {
      event.stopPropagation();
      action(structure);
    };
    const item = make(
      "li",
      { className: structure.visible ? "" : "hidden", onclick: () => choose(structure) },
      make("button", {
        className: "swatch",
        style: `background:${css(structure.colour)}`,
        title: structure.visible ? "Hide" : "Show",
        "aria-label": `${structure.visible ? "Hide" : "Show"} ${structure.name}`,
        onclick: stop(toggle),
      }),
      make("span", { className: "text", title: structure.name }, words(structure.name)),
      make("span", { className: "tail" }, [clicks, volume].filter(Boolean).join(" · ")),
      make("button", { title: "Remove", "aria-label": `Remove ${structure.name}`, onclick: stop(remove) }, "×"),
    );
    item.setAttribute("aria-current", String(structure === structures.active));
    return item;
  });
  list.replaceChildren(...items);
}
