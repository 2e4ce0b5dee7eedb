// Frames. `ijk`: voxel in the file's own array order, which is what the server speaks. `ras`: voxel in the order in
// which NiiVue keeps a scan, its axes nearest to Right, Anterior, Superior. A layout says where a voxel lies in memory.

/**
 * The way between a file's voxels and NiiVue's.
 * `permRAS` is NiiVue's: for each RAS axis the file's axis, from 1, negative where the two run in opposite directions.
 */
export class Orientation {
  constructor(permRAS, shapeIjk) {
    this.shapeIjk = [...shapeIjk];
    this.axes = permRAS.map((axis) => Math.abs(axis) - 1);
    this.flips = permRAS.map((axis) => axis < 0);
    if ([...this.axes].sort().join() !== "0,1,2") throw new Error(`permRAS must name each axis once, got ${permRAS}`);
    this.shapeRas = this.axes.map((axis) => this.shapeIjk[axis]);
  }

  toRas(ijk) {
    return this.axes.map((axis, n) => (this.flips[n] ? this.shapeRas[n] - 1 - ijk[axis] : ijk[axis]));
  }

  toIjk(ras) {
    const ijk = [0, 0, 0];
    this.axes.forEach((axis, n) => (ijk[axis] = this.flips[n] ? this.shapeRas[n] - 1 - ras[n] : ras[n]));
    return ijk;
  }

  /** A half-open box of file voxels as one of NiiVue's. */
  boxToRas({ start, stop }) {
    const ends = [this.toRas(start), this.toRas(stop.map((v) => v - 1))];
    return {
      start: ends[0].map((v, n) => Math.min(v, ends[1][n])),
      stop: ends[0].map((v, n) => Math.max(v, ends[1][n]) + 1),
    };
  }

  /** Where the voxel ijk lies in NiiVue's arrays: offset + i * steps[0] + j * steps[1] + k * steps[2]. */
  rasLayout() {
    const strides = [1, this.shapeRas[0], this.shapeRas[0] * this.shapeRas[1]];
    const steps = [0, 0, 0];
    let offset = 0;
    this.axes.forEach((axis, n) => {
      steps[axis] = this.flips[n] ? -strides[n] : strides[n];
      if (this.flips[n]) offset += strides[n] * (this.shapeRas[n] - 1);
    });
    return { offset, steps };
  }
}

/** Of an array in the file's own order, i fastest. */
export function fileLayout(shapeIjk) {
  return { offset: 0, steps: [1, shapeIjk[0], shapeIjk[0] * shapeIjk[1]] };
}

/** The RAS voxel of a fraction 0 to 1 of NiiVue's volume along each axis. */
export function fracToRas(frac, shapeRas) {
  return shapeRas.map((n, axis) => Math.min(n - 1, Math.max(0, Math.floor(frac[axis] * n))));
}

/** The middle of a RAS voxel as a fraction. */
export function rasToFrac(ras, shapeRas) {
  return ras.map((v, axis) => (v + 0.5) / shapeRas[axis]);
}

export function boxShape({ start, stop }) {
  return start.map((v, axis) => stop[axis] - v);
}

export function union(a, b) {
  if (!a || !b) return a || b;
  return {
    start: a.start.map((v, axis) => Math.min(v, b.start[axis])),
    stop: a.stop.map((v, axis) => Math.max(v, b.stop[axis])),
  };
}

export function intersection(a, b) {
  const box = {
    start: a.start.map((v, axis) => Math.max(v, b.start[axis])),
    stop: a.stop.map((v, axis) => Math.min(v, b.stop[axis])),
  };
  return box.start.every((v, axis) => v < box.stop[axis]) ? box : null;
}

/** Whether two grids are one: same voxels, and affines (rows of 4) that part by less than a tenth of a voxel anywhere. */
export function sameGrid(shape, affine, otherShape, otherAffine) {
  if (shape.join() !== otherShape.join()) return false;
  const spacing = [0, 1, 2].map((axis) => Math.hypot(...[0, 1, 2].map((row) => affine[row][axis])));
  const limit = 0.1 * Math.min(...spacing);
  for (let corner = 0; corner < 8; corner++) {
    const ijk1 = [0, 1, 2].map((axis) => (corner >> axis) & 1 && shape[axis] - 1).concat(1);
    const gap = [0, 1, 2].map((row) => ijk1.reduce((sum, v, n) => sum + v * (affine[row][n] - otherAffine[row][n]), 0));
    if (!(Math.hypot(...gap) <= limit)) return false;
  }
  return true;
}

/** Millilitres of a voxel. */
export function voxelMl(affine) {
  const [a, b, c] = affine;
  const minors = [b[1] * c[2] - b[2] * c[1], b[0] * c[2] - b[2] * c[0], b[0] * c[1] - b[1] * c[0]];
  return Math.abs(a[0] * minors[0] - a[1] * minors[1] + a[2] * minors[2]) / 1000;
}
