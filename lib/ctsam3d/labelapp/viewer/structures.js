// The structures of a study and their clicks. A click history is a list; what was undone waits behind it.

/** Beyond the colours that the server knows: for new names, far apart in hue. */
function ownColour(n) {
  const hue = (40 + 137.5 * n) % 360;
  const channel = (shift) => {
    const part = (shift + hue / 30) % 12;
    return Math.round(255 * (0.58 - 0.38 * Math.max(-1, Math.min(part - 3, 9 - part, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

export class Structure {
  constructor(name, value, named, colour) {
    Object.assign(this, { name, value, named, colour });
    this.clicks = []; // { ijk, positive }
    this.undone = [];
    this.mask = null;
    this.visible = true;
    this.reply = null; // what the server last said of it
    this.origin = ""; // "saved": the mask came with the study
  }

  positive() {
    return this.clicks.filter((click) => click.positive).map((click) => click.ijk);
  }

  negative() {
    return this.clicks.filter((click) => !click.positive).map((click) => click.ijk);
  }

  /** Adds a click; returns why it cannot be one, or an empty text. */
  click(ijk, positive) {
    if (this.clicks.some((click) => click.ijk.join() === ijk.join())) return "There is a click on this voxel already.";
    if (!positive && !this.clicks.some((click) => click.positive)) {
      return `Begin ${this.name} with a positive click (left button or P); negative ones take away from what there is.`;
    }
    this.clicks.push({ ijk, positive });
    this.undone = [];
    return "";
  }

  undo() {
    if (this.clicks.length) this.undone.push(this.clicks.pop());
  }

  redo() {
    if (this.undone.length) this.clicks.push(this.undone.pop());
  }
}

/** All structures of a study, the one that was worked on last at the end: where two overlap, it holds. */
export class Structures {
  constructor(names, colours) {
    Object.assign(this, { names, colours });
    this.list = [];
    this.active = null;
  }

  get(name) {
    return this.list.find((structure) => structure.name === name);
  }

  /** The structure of a name; made where there is none. Values: the place among the known names, then those after it. */
  add(name, value = 0) {
    const found = this.get(name);
    if (found) return found;
    const place = this.names.indexOf(name);
    const used = new Set(this.list.map((structure) => structure.value));
    let own = value && !used.has(value) ? value : place >= 0 && !used.has(place + 1) ? place + 1 : this.names.length + 1;
    while (used.has(own)) own++;
    if (own > 255) throw new Error("A label map holds at most 255 structures.");
    const colour = this.colours[name] ?? ownColour(this.list.filter((s) => !(s.name in this.colours)).length);
    const structure = new Structure(name, own, place >= 0, colour);
    this.list.push(structure);
    return structure;
  }

  remove(structure) {
    this.list = this.list.filter((other) => other !== structure);
    if (this.active === structure) this.active = this.list.at(-1) ?? null;
  }

  /** Puts a structure above all others. */
  raise(structure) {
    this.list = [...this.list.filter((other) => other !== structure), structure];
  }

  layers(onlyVisible) {
    return this.list.filter((s) => s.mask && (s.visible || !onlyVisible)).map(({ value, mask }) => ({ value, mask }));
  }
}
