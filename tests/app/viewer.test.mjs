// The parts of the browser page that need no browser: `node --test`, which test_viewer_script.py runs.
// Values are computed by hand.

import assert from "node:assert/strict";
import { test } from "node:test";

const folder = process.env.VIEWER;
const part = (name) => import(`${folder}/${name}.js`);
const { Orientation, boxShape, fileLayout, fracToRas, intersection, rasToFrac, sameGrid, union, voxelMl } = await part("geometry");
const { compose, cut, masksOf } = await part("labelmap");
const { readLabels, writeLabels } = await part("nifti");
const { Structures } = await part("structures");
const { Work } = await part("work");

// ---- frames --------------------------------------------------------------------------------------------------------

test("an LPS file: the first two axes run the other way", () => {
  const lps = new Orientation([-1, -2, 3], [10, 20, 30]);
  assert.deepEqual(lps.shapeRas, [10, 20, 30]);
  assert.deepEqual(lps.toRas([0, 0, 0]), [9, 19, 0]);
  assert.deepEqual(lps.toIjk([9, 19, 0]), [0, 0, 0]);
  assert.deepEqual(lps.toRas([3, 4, 5]), [6, 15, 5]);
});

test("a PIR file: i to Posterior, j to Inferior, k to Right", () => {
  const pir = new Orientation([3, -1, -2], [10, 20, 30]); // R is k, A is i backwards, S is j backwards
  assert.deepEqual(pir.shapeRas, [30, 10, 20]);
  assert.deepEqual(pir.toRas([1, 2, 3]), [3, 8, 17]);
  assert.deepEqual(pir.toIjk([3, 8, 17]), [1, 2, 3]);
});

test("layout, box and voxel agree for all 48 orientations", () => {
  const shape = [2, 3, 4];
  const orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
  for (const order of orders) {
    for (let signs = 0; signs < 8; signs++) {
      const orientation = new Orientation(order.map((axis, n) => ((signs >> n) & 1 ? -axis : axis)), shape);
      const [nx, ny] = orientation.shapeRas;
      const { offset, steps } = orientation.rasLayout();
      const seen = new Set();
      for (let k = 0; k < 4; k++) {
        for (let j = 0; j < 3; j++) {
          for (let i = 0; i < 2; i++) {
            const [x, y, z] = orientation.toRas([i, j, k]);
            assert.deepEqual(orientation.toIjk([x, y, z]), [i, j, k]);
            const at = offset + i * steps[0] + j * steps[1] + k * steps[2];
            assert.equal(at, x + nx * (y + ny * z));
            seen.add(at);
            const box = orientation.boxToRas({ start: [i, j, k], stop: [i + 1, j + 1, k + 1] });
            assert.deepEqual(box, { start: [x, y, z], stop: [x + 1, y + 1, z + 1] });
          }
        }
      }
      assert.equal(seen.size, 24);
      assert.deepEqual(boxShape(orientation.boxToRas({ start: [0, 1, 1], stop: [2, 3, 2] })).sort(), [1, 2, 2]);
    }
  }
});

test("an orientation that names an axis twice is refused", () => {
  assert.throws(() => new Orientation([1, -1, 3], [2, 2, 2]), /each axis once/);
});

test("a fraction and a voxel", () => {
  assert.deepEqual(fracToRas([0, 0.5, 1], [4, 4, 4]), [0, 2, 3]);
  assert.deepEqual(fracToRas([-0.1, 0.249, 1.2], [4, 4, 4]), [0, 0, 3]);
  assert.deepEqual(rasToFrac([0, 1, 3], [4, 4, 4]), [0.125, 0.375, 0.875]);
});

test("boxes", () => {
  const a = { start: [0, 0, 0], stop: [2, 2, 2] };
  const b = { start: [1, 1, 1], stop: [4, 3, 2] };
  assert.deepEqual(union(a, b), { start: [0, 0, 0], stop: [4, 3, 2] });
  assert.deepEqual(intersection(a, b), { start: [1, 1, 1], stop: [2, 2, 2] });
  assert.equal(intersection(a, { start: [2, 0, 0], stop: [3, 1, 1] }), null);
  assert.deepEqual(union(null, b), b);
  assert.deepEqual(union(a, undefined), a);
});

test("two grids are one up to a tenth of a voxel", () => {
  const affine = [[-2, 0, 0, 10], [0, -2, 0, 20], [0, 0, 3, 5]];
  const moved = (by) => affine.map((row, n) => (n ? row : [row[0], row[1], row[2], row[3] + by]));
  assert.ok(sameGrid([4, 4, 4], affine, [4, 4, 4], moved(0.1)));
  assert.ok(!sameGrid([4, 4, 4], affine, [4, 4, 4], moved(0.3)));
  assert.ok(!sameGrid([4, 4, 4], affine, [4, 4, 5], affine));
  assert.ok(!sameGrid([400, 4, 4], affine, [400, 4, 4], [[-2.001, 0, 0, 10], ...affine.slice(1)])); // 0.4 mm at the end
  assert.ok(!sameGrid([4, 4, 4], affine, [4, 4, 4], moved(NaN)));
  assert.equal(voxelMl(affine), 0.012);
});

// ---- masks and label map -------------------------------------------------------------------------------------------

test("structures of a label map over a box", () => {
  const labels = Uint8Array.from([0, 1, 0, 1, 0, 0, 5, 0]); // 2 x 2 x 2, i fastest
  const masks = masksOf(labels, { start: [10, 20, 30], stop: [12, 22, 32] });
  assert.deepEqual([...masks.keys()].sort(), [1, 5]);
  assert.deepEqual(masks.get(1), { box: { start: [11, 20, 30], stop: [12, 22, 31] }, voxels: Uint8Array.from([1, 1]), count: 2 });
  assert.deepEqual(masks.get(5), { box: { start: [10, 21, 31], stop: [11, 22, 32] }, voxels: Uint8Array.from([1]), count: 1 });
  assert.equal(masksOf(new Uint8Array(1), { start: [0, 0, 0], stop: [1, 1, 1] }).size, 0);
});

test("the last layer lies on top, and only the region changes", () => {
  const layout = fileLayout([4, 1, 1]);
  const target = Uint8Array.from([9, 9, 9, 9]);
  const layer = (value, start, ...voxels) => ({
    value,
    mask: { box: { start: [start, 0, 0], stop: [start + voxels.length, 1, 1] }, voxels: Uint8Array.from(voxels) },
  });
  const layers = [layer(1, 0, 1, 1, 1), layer(2, 1, 1, 0, 1)];
  compose(target, layout, { start: [1, 0, 0], stop: [4, 1, 1] }, layers);
  assert.deepEqual([...target], [9, 2, 1, 2]);
  compose(target, layout, { start: [0, 0, 0], stop: [4, 1, 1] }, []);
  assert.deepEqual([...target], [0, 0, 0, 0]);
});

test("a label map in NiiVue's order", () => {
  const pir = new Orientation([3, -1, -2], [2, 3, 4]);
  const target = new Uint8Array(24);
  const box = { start: [1, 2, 3], stop: [2, 3, 4] };
  compose(target, pir.rasLayout(), box, [{ value: 7, mask: { box, voxels: Uint8Array.of(1) } }]);
  assert.equal(target.indexOf(7), 3 + 4 * (0 + 2 * 0)); // R 3, A 0, S 0 of 4 x 2 x 3
  assert.deepEqual([...cut(target, pir.shapeRas, pir.boxToRas(box))], [7]);
});

test("a label map as a file and back", async () => {
  const affine = [[-2, 0.5, 0, 10], [0.25, -2, 0, 20], [0, 0, 3, 5], [0, 0, 0, 1]];
  const voxels = Uint8Array.from({ length: 24 }, (_, n) => n);
  const read = await readLabels(await writeLabels(voxels, [2, 3, 4], affine));
  assert.deepEqual(read.shape, [2, 3, 4]);
  assert.deepEqual(read.affine, affine.slice(0, 3));
  assert.deepEqual(read.voxels, voxels);
});

// ---- structures and clicks -----------------------------------------------------------------------------------------

test("values: the place among the known names, then those after it", () => {
  const structures = new Structures(["spleen", "liver"], { liver: [1, 2, 3] });
  const [liver, mine, other] = ["liver", "mine", "other"].map((name) => structures.add(name));
  assert.deepEqual([liver.value, mine.value, other.value], [2, 3, 4]);
  assert.deepEqual([liver.named, mine.named], [true, false]);
  assert.deepEqual(liver.colour, [1, 2, 3]);
  assert.notDeepEqual(mine.colour, other.colour);
  assert.ok([...mine.colour, ...other.colour].every((v) => Number.isInteger(v) && v >= 0 && v <= 255));
  assert.equal(structures.add("liver"), liver);
  structures.remove(mine);
  assert.equal(structures.add("third").value, 3);
});

test("a value of a saved label is kept, also where it belongs to another name here", () => {
  const structures = new Structures(["spleen", "liver"], {});
  assert.equal(structures.add("tumour", 2).value, 2);
  assert.equal(structures.add("liver").value, 3);
});

test("clicks, undo and redo", () => {
  const liver = new Structures(["liver"], {}).add("liver");
  assert.match(liver.click([1, 2, 3], false), /Begin liver with a positive click/);
  assert.equal(liver.click([1, 2, 3], true), "");
  assert.match(liver.click([1, 2, 3], false), /already/);
  assert.equal(liver.click([4, 5, 6], false), "");
  assert.deepEqual([liver.positive(), liver.negative()], [[[1, 2, 3]], [[4, 5, 6]]]);
  liver.undo();
  assert.deepEqual(liver.negative(), []);
  liver.redo();
  assert.deepEqual(liver.negative(), [[4, 5, 6]]);
  liver.undo();
  liver.click([7, 8, 9], true);
  liver.redo(); // a new click ends what could be redone
  assert.deepEqual(liver.clicks.length, 2);
});

// ---- who is asked about next ---------------------------------------------------------------------------------------

function bench(answers = {}) {
  const seen = { asked: [], applied: [], failed: [] };
  const waiting = [];
  const work = new Work({
    segment: (structure) => {
      seen.asked.push([structure.name, structure.clicks]);
      return new Promise((resolve, reject) => waiting.push({ resolve, reject }));
    },
    apply: (structure, answer) => seen.applied.push([structure.name, answer]),
    failed: (structure, error) => seen.failed.push([structure.name, error.message]),
    changed: () => {},
  });
  const structure = (name, clicks = 1) => ({ name, clicks, positive: () => Array(clicks).fill([0, 0, 0]) });
  const reply = (name, ended) => ({ reply: { expansion: { [name]: { ended } } } });
  return { work, seen, waiting, structure, reply };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

test("one question at a time, and the newest clicks only", async () => {
  const { work, seen, waiting, structure, reply } = bench();
  const liver = structure("liver");
  work.ask(liver);
  assert.ok(work.busy);
  liver.clicks = 2;
  work.ask(liver);
  liver.clicks = 3;
  work.ask(liver);
  assert.deepEqual(seen.asked, [["liver", 1]]);
  waiting.shift().resolve(reply("liver", "quiet"));
  await turn();
  assert.deepEqual(seen.applied, []); // it was the answer to clicks that have changed since
  assert.deepEqual(seen.asked.at(-1), ["liver", 3]);
  const settled = work.settled();
  waiting.shift().resolve(reply("liver", "quiet"));
  await settled;
  assert.equal(seen.applied.length, 1);
  assert.ok(!work.busy);
});

test("no positive click: no question, and no mask", async () => {
  const { work, seen, structure } = bench();
  const empty = { ...structure("liver"), positive: () => [] };
  work.ask(empty);
  await work.settled();
  assert.deepEqual([seen.asked, seen.applied], [[], [["liver", null]]]);
});

test("what goes on spreading is asked about again, after the clicks of others, until it is quiet", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const { work, seen, waiting, structure, reply } = bench();
  const [liver, spleen] = [structure("liver"), structure("spleen")];
  work.ask(liver);
  waiting.shift().resolve(reply("liver", "time budget"));
  await turn();
  assert.deepEqual(work.spreading, [liver]);
  assert.ok(!work.busy);
  work.ask(spleen);
  t.mock.timers.tick(5000);
  assert.deepEqual(seen.asked.map(([name]) => name), ["liver", "spleen"]);
  waiting.shift().resolve(reply("spleen", "quiet"));
  await turn();
  assert.deepEqual(seen.asked.at(-1)[0], "liver");
  waiting.shift().resolve(reply("liver", "quiet"));
  await turn();
  t.mock.timers.tick(5000);
  assert.deepEqual(work.spreading, []);
  assert.equal(seen.asked.length, 3);
});

test("a failure is told once, and the next click is asked about", async () => {
  const { work, seen, waiting, structure } = bench();
  const liver = structure("liver");
  work.ask(liver);
  const settled = work.settled();
  waiting.shift().reject(new Error("no"));
  await settled;
  assert.deepEqual(seen.failed, [["liver", "no"]]);
  work.ask(liver);
  assert.equal(seen.asked.length, 2);
});

test("after another study was opened, late answers are dropped", async () => {
  const { work, seen, waiting, structure, reply } = bench();
  work.ask(structure("liver"));
  work.stop();
  work.ask(structure("spleen"));
  waiting.shift().resolve(reply("liver", "time budget"));
  await turn();
  assert.deepEqual([seen.applied, work.spreading], [[], []]);
  waiting.shift().resolve(reply("spleen", "quiet"));
  await work.settled();
  assert.deepEqual(seen.applied.map(([name]) => name), ["spleen"]);
});
