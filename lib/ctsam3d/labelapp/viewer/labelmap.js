// Masks of structures, each over a box of its own, and the label map that they make together.

import { boxShape, intersection } from "./geometry.js";

/**
 * The structures of a label map over `box`, a half-open box of file voxels, i fastest: a map from value to mask,
 * { box, voxels, count }, each over the smallest box that holds it.
 */
export function masksOf(labels, box) {
  const [ni, nj, nk] = boxShape(box);
  const found = new Map();
  for (let k = 0, n = 0; k < nk; k++) {
    for (let j = 0; j < nj; j++) {
      for (let i = 0; i < ni; i++, n++) {
        const value = labels[n];
        if (!value) continue;
        const at = found.get(value) ?? { low: [i, j, k], high: [i, j, k], count: 0 };
        if (!at.count++) found.set(value, at);
        [i, j, k].forEach((v, axis) => {
          if (v < at.low[axis]) at.low[axis] = v;
          if (v > at.high[axis]) at.high[axis] = v;
        });
      }
    }
  }
  for (const [value, { low, high, count }] of found) {
    const within = { start: low, stop: high.map((v) => v + 1) };
    const voxels = cut(labels, [ni, nj, nk], within).map((v) => Number(v === value));
    const shift = (corner) => corner.map((v, axis) => v + box.start[axis]);
    found.set(value, { box: { start: shift(low), stop: shift(within.stop) }, voxels, count });
  }
  return found;
}

/**
 * Writes a part of the label map anew.
 *
 * `layers`: [{ value, mask }], the last one on top; `region`: a box of file voxels; `layout`: of `target`.
 */
export function compose(target, layout, region, layers) {
  forRows(region, region, layout, (from, to, count) => {
    for (let n = 0, at = to; n < count; n++, at += layout.steps[0]) target[at] = 0;
  });
  for (const { value, mask } of layers) {
    const part = mask && intersection(region, mask.box);
    if (!part) continue;
    forRows(part, mask.box, layout, (from, to, count) => {
      for (let n = 0, at = to; n < count; n++, at += layout.steps[0]) {
        if (mask.voxels[from + n]) target[at] = value;
      }
    });
  }
}

/** Calls `row(index in an array over `box`, index in the target, voxels)` for each row of `part`. */
function forRows(part, box, layout, row) {
  const [ni, nj] = boxShape(box);
  const count = part.stop[0] - part.start[0];
  for (let k = part.start[2]; k < part.stop[2]; k++) {
    for (let j = part.start[1]; j < part.stop[1]; j++) {
      const from = part.start[0] - box.start[0] + ni * (j - box.start[1] + nj * (k - box.start[2]));
      const to = layout.offset + part.start[0] * layout.steps[0] + j * layout.steps[1] + k * layout.steps[2];
      row(from, to, count);
    }
  }
}

/** The part of an array with i fastest over `shape` that a box holds, i fastest. */
export function cut(array, shape, box) {
  const [ni, nj, nk] = boxShape(box);
  const out = new Uint8Array(ni * nj * nk);
  let to = 0;
  for (let k = box.start[2]; k < box.stop[2]; k++) {
    for (let j = box.start[1]; j < box.stop[1]; j++, to += ni) {
      const from = box.start[0] + shape[0] * (j + shape[1] * k);
      out.set(array.subarray(from, from + ni), to);
    }
  }
  return out;
}
