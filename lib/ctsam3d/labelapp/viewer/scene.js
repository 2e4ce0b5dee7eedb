// NiiVue: three planes and the 3D view of a scan, the label map over them, and the clicks of the mouse.
//
// The label map is NiiVue's drawing: one byte a voxel of the scan, in its RAS order, so that nothing is resampled. Of a
// changed label map only the changed box goes to the graphics card.

import { DRAG_MODE, MULTIPLANAR_TYPE, Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from "./niivue.js";
import { boxShape, fileLayout, fracToRas, Orientation, rasToFrac } from "./geometry.js";
import { compose, cut } from "./labelmap.js";

const STILL = 5; // CSS pixels that the mouse may move in a click
const BODY = 0.6; // opacity of the scan in the 3D view, so that the structures in it are seen
const AXIAL_CORONAL_SAGITTAL = [2, 1, 0]; // the RAS axis across each plane, by NiiVue's number of the plane

export class Scene {
  /** `onClick(ijk, positive)`, `onMove(ijk, value)` when the crosshair has moved. */
  constructor(canvas, marks, { onClick, onMove }) {
    Object.assign(this, { canvas, marks, onClick, onMove });
    this.clicks = [];
    this.volume = this.orientation = null;
    this.nv = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [0.35, 0.75, 1, 0.75],
      crosshairWidth: 0.3,
      crosshairWidthUnit: "percent",
      crosshairGap: 12,
      show3Dcrosshair: true,
      fontColor: [0.75, 0.8, 0.86, 1],
      fontMinPx: 12,
      tileMargin: 0,
      multiplanarPadPixels: 6,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      multiplanarShowRender: SHOW_RENDER.ALWAYS,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isNearestInterpolation: false,
      isSliceMM: false,
      isForceMouseClickToVoxelCenters: true,
      dragAndDropEnabled: false,
      drawingEnabled: false,
      isOrientCube: false,
      loadingText: "",
      clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "",
      viewModeHotKey: "",
      mouseEventConfig: {
        leftButton: { primary: DRAG_MODE.crosshair },
        rightButton: DRAG_MODE.windowing,
        centerButton: DRAG_MODE.pan,
      },
      logLevel: "error",
    });
  }

  async start() {
    await this.nv.attachToCanvas(this.canvas);
    this.nv.setSliceType(SLICE_TYPE.MULTIPLANAR);
    this.#drawOncePerFrame();
    const drawImage3D = this.nv.drawImage3D.bind(this.nv);
    this.nv.drawImage3D = (...all) => this.#withFaintBody(() => drawImage3D(...all));
    this.nv.onLocationChange = () => this.#moved();
    this.#listen();
  }

  /** Shows a scan: `name` with its extension, and the bytes of its file. */
  async show(name, buffer, window) {
    this.clear();
    const volume = await NVImage.loadFromUrl({ url: name, name, buffer, colormap: "gray", cal_min: window[0], cal_max: window[1] });
    this.nv.addVolume(volume);
    this.volume = volume;
    this.orientation = new Orientation(volume.permRAS, volume.hdr.dims.slice(1, 4));
    this.layout = this.orientation.rasLayout();
    this.nv.createEmptyDrawing();
    this.nv.clickToSegmentGrowingBitmap = null; // for tools of NiiVue's that are not used here, each as large as the scan
    this.nv.drawUndoBitmaps = [];
    this.nv.scene.crosshairPos = [0.5, 0.5, 0.5];
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1];
    this.nv.setRenderAzimuthElevation(160, 12);
    this.setWindow(window);
    this.#moved();
  }

  clear() {
    this.nv.closeDrawing();
    for (const volume of [...this.nv.volumes]) this.nv.removeVolume(volume);
    this.volume = this.orientation = null;
    this.clicks = [];
    this.nv.drawScene();
  }

  /** Voxels and affine (rows of 4) as NiiVue has read them. */
  get grid() {
    return { shape: this.orientation.shapeIjk, affine: this.volume.hdr.affine };
  }

  setWindow([low, high]) {
    if (!this.volume) return;
    [this.volume.cal_min, this.volume.cal_max] = [low, high];
    this.nv.updateGLVolume();
  }

  /** Colours of the values: [{ value, colour }], and how much of them is seen, 0 to 1. */
  setColours(structures, opacity) {
    const lut = new Uint8ClampedArray(256 * 4);
    for (const { value, colour } of structures) lut.set([...colour, 255], 4 * value);
    if (lut.join() !== this.nv.drawLut.lut.join()) {
      this.nv.drawLut = { lut, labels: [] };
      this.nv.refreshColormaps();
    }
    this.nv.drawOpacity = opacity;
    this.nv.drawScene();
  }

  /** Whether the 3D view is drawn, which is slow without a graphics card. */
  set with3D(shown) {
    this.nv.opts.multiplanarShowRender = shown ? SHOW_RENDER.ALWAYS : SHOW_RENDER.NEVER;
    this.nv.drawScene();
  }

  get with3D() {
    return this.nv.opts.multiplanarShowRender === SHOW_RENDER.ALWAYS;
  }

  /** Draws a box of file voxels of the label map anew. */
  paint(region, layers) {
    compose(this.nv.drawBitmap, this.layout, region, layers);
    const box = this.orientation.boxToRas(region);
    const { gl } = this.nv;
    gl.activeTexture(gl.TEXTURE7); // where NiiVue keeps the drawing
    gl.bindTexture(gl.TEXTURE_3D, this.nv.drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    const voxels = cut(this.nv.drawBitmap, this.orientation.shapeRas, box);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, ...box.start, ...boxShape(box), gl.RED, gl.UNSIGNED_BYTE, voxels);
    this.nv.drawScene();
  }

  setClicks(clicks) {
    this.clicks = clicks;
    this.nv.drawScene();
  }

  get crosshairIjk() {
    return this.orientation?.toIjk(fracToRas(this.nv.scene.crosshairPos, this.orientation.shapeRas));
  }

  goTo(ijk) {
    this.nv.scene.crosshairPos = rasToFrac(this.orientation.toRas(ijk), this.orientation.shapeRas);
    this.nv.drawScene();
    this.#moved();
  }

  /** Moves the crosshair by voxels to the Right, Anterior, Superior. */
  step(ras) {
    if (!this.volume) return;
    this.nv.moveCrosshairInVox(...ras);
    this.#moved();
  }

  /** The file's voxel under a place of the canvas in CSS pixels, or null outside the planes. */
  ijkAt(x, y) {
    if (!this.volume) return null;
    const ratio = this.nv.uiData.dpr;
    for (let tile = 0; tile < this.nv.screenSlices.length; tile++) {
      const frac = this.nv.screenXY2TextureFrac(x * ratio, y * ratio, tile, true);
      if (frac[0] >= 0) return this.orientation.toIjk(fracToRas(frac, this.orientation.shapeRas));
    }
    return null;
  }

  /** Where a voxel lies in each plane that shows it: [{ plane, x, y }] in CSS pixels of the canvas. */
  placesOf(ijk) {
    const ras = this.orientation.toRas(ijk);
    const here = fracToRas(this.nv.scene.crosshairPos, this.orientation.shapeRas);
    const frac = rasToFrac(ras, this.orientation.shapeRas);
    const ratio = this.nv.uiData.dpr;
    return this.nv.screenSlices.flatMap((tile, n) => {
      const across = AXIAL_CORONAL_SAGITTAL[tile.axCorSag];
      if (across === undefined || ras[across] !== here[across]) return [];
      const [left, top, width, height] = tile.leftTopWidthHeight;
      const [a, b] = [0, 1, 2].filter((axis) => axis !== across);
      const inside = [0.25, 0.75].map((share) =>
        this.nv.screenXY2TextureFrac(left + share * width, top + share * height, n, false),
      );
      const share = (axis) => 0.25 + (0.5 * (frac[axis] - inside[0][axis])) / (inside[1][axis] - inside[0][axis]);
      const place = { plane: tile.axCorSag, x: (left + share(a) * width) / ratio, y: (top + share(b) * height) / ratio };
      const shown = share(a) >= 0 && share(a) <= 1 && share(b) >= 0 && share(b) <= 1;
      return shown ? [place] : [];
    });
  }

  zoom(factor) {
    const pan = this.nv.scene.pan2Dxyzmm;
    pan[3] = Math.min(12, Math.max(1, pan[3] * factor));
    if (pan[3] === 1) pan[0] = pan[1] = pan[2] = 0;
    this.nv.drawScene();
  }

  /** One click asks for several drawings, each of which takes as long as the graphics card needs. */
  #drawOncePerFrame() {
    const drawScene = this.nv.drawScene.bind(this.nv);
    let asked = false;
    this.nv.drawScene = () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        drawScene();
        this.#drawMarks();
      });
    };
  }

  #listen() {
    let down = null;
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.canvas.addEventListener("mousedown", (event) => (down = { button: event.button, at: place(event) }));
    window.addEventListener("mouseup", (event) => {
      const begun = down;
      down = null;
      if (!begun || begun.button !== event.button || ![0, 2].includes(event.button)) return;
      const [x, y] = place(event);
      if (Math.hypot(x - begun.at[0], y - begun.at[1]) > STILL) return;
      const ijk = this.ijkAt(...begun.at);
      if (ijk) this.onClick(ijk, event.button === 0 && !event.altKey);
    });
    this.canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    this.canvas.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey && !event.metaKey) return;
        event.preventDefault();
        event.stopImmediatePropagation();
        this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
      },
      { capture: true, passive: false },
    );
  }

  #moved() {
    if (!this.volume) return;
    const ijk = this.crosshairIjk;
    const { offset, steps } = fileLayout(this.orientation.shapeIjk);
    const { scl_slope: slope, scl_inter: inter } = this.volume.hdr;
    const stored = this.volume.img[ijk.reduce((at, v, axis) => at + v * steps[axis], offset)];
    this.onMove(ijk, slope ? stored * slope + inter : stored);
  }

  /** The 3D view shows the structures whole where the planes show them transparent. */
  #withFaintBody(draw) {
    const { gl, renderShader, drawOpacity } = this.nv;
    renderShader.use(gl);
    gl.uniform1f(renderShader.uniforms.backOpacity, BODY); // NiiVue has but one opacity for planes and 3D view
    this.nv.drawOpacity = drawOpacity && 1;
    try {
      return draw();
    } finally {
      this.nv.drawOpacity = drawOpacity;
    }
  }

  #drawMarks() {
    const ratio = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (this.marks.width !== Math.round(width * ratio) || this.marks.height !== Math.round(height * ratio)) {
      this.marks.width = Math.round(width * ratio);
      this.marks.height = Math.round(height * ratio);
    }
    // In main memory: where a graphics card is simulated, Chromium stops drawing what should be drawn on it.
    const pen = this.marks.getContext("2d", { willReadFrequently: true });
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!this.volume) return;
    for (const { ijk, positive } of this.clicks) {
      for (const { x, y } of this.placesOf(ijk)) mark(pen, x, y, positive);
    }
  }
}

/** A plus on green, or a minus on red: told apart without colours too. */
function mark(pen, x, y, positive) {
  pen.beginPath();
  pen.arc(x, y, 6, 0, 2 * Math.PI);
  pen.fillStyle = positive ? "#1fae5b" : "#e0413a";
  pen.fill();
  pen.lineWidth = 1.5;
  pen.strokeStyle = "#ffffff";
  pen.stroke();
  pen.beginPath();
  pen.moveTo(x - 3, y);
  pen.lineTo(x + 3, y);
  if (positive) {
    pen.moveTo(x, y - 3);
    pen.lineTo(x, y + 3);
  }
  pen.stroke();
}
