// NIfTI-1 as the server sends label maps, and as it takes them: one file, uint8, gzipped.

const HEADER = 352; // bytes before the voxels, four of which say that there are no extensions
const UINT8 = 2;

/** Of a gzipped file of uint8 voxels: { shape, affine (3 rows of 4), voxels, i fastest }. */
export async function readLabels(blob) {
  const buffer = await throughGzip(blob, new DecompressionStream("gzip"));
  const view = new DataView(buffer);
  if (view.getInt32(0, true) !== 348 || view.getInt16(70, true) !== UINT8) {
    throw new Error("The server's label map is not of the kind that this page asked for.");
  }
  const shape = [1, 2, 3].map((n) => view.getInt16(40 + 2 * n, true));
  const row = (n) => [0, 1, 2, 3].map((column) => view.getFloat32(280 + 16 * n + 4 * column, true));
  const voxels = new Uint8Array(buffer, view.getFloat32(108, true), shape[0] * shape[1] * shape[2]);
  return { shape, affine: [0, 1, 2].map(row), voxels };
}

/** A gzipped file of uint8 voxels, i fastest, on the grid of `affine`, whose first three rows of 4 are used. */
export async function writeLabels(voxels, shape, affine) {
  const header = new DataView(new ArrayBuffer(HEADER));
  header.setInt32(0, 348, true);
  [3, ...shape, 1, 1, 1, 1].forEach((n, at) => header.setInt16(40 + 2 * at, n, true));
  header.setInt16(70, UINT8, true);
  header.setInt16(72, 8, true); // bits a voxel
  const spacing = [0, 1, 2].map((axis) => Math.hypot(...[0, 1, 2].map((row) => affine[row][axis])));
  [1, ...spacing].forEach((size, at) => header.setFloat32(76 + 4 * at, size, true));
  header.setFloat32(108, HEADER, true);
  header.setFloat32(112, 1, true); // slope
  header.setUint8(123, 2); // mm
  header.setInt16(254, 1, true); // the affine below holds
  affine.slice(0, 3).forEach((row, n) => row.forEach((v, at) => header.setFloat32(280 + 16 * n + 4 * at, v, true)));
  [0x6e, 0x2b, 0x31, 0].forEach((byte, at) => header.setUint8(344 + at, byte)); // "n+1"
  return new Blob([await throughGzip(new Blob([header, voxels]), new CompressionStream("gzip"))]);
}

async function throughGzip(blob, transform) {
  return new Response(blob.stream().pipeThrough(transform)).arrayBuffer();
}
