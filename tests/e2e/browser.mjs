// Chromium without a screen and without a graphics card, and the steps that the tests of the viewer share.

import fs from "node:fs";
import { chromium } from "playwright-core";

const FLAGS = [
  ...["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"],
  ...["--disable-component-update", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
  "--ignore-gpu-blocklist",
];
const PATIENCE_MS = 240_000; // a software renderer on a busy machine

/** A page of the server, and what went wrong on it. */
export async function open(executablePath, out) {
  const browser = await chromium.launch({ executablePath, headless: true, args: FLAGS });
  const context = await browser.newContext({ viewport: { width: 1200, height: 760 }, reducedMotion: "reduce" });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  const problems = [];
  const elsewhere = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  page.on("request", (request) => /^https?:/.test(request.url()) && elsewhere.push(new URL(request.url()).host));
  return { browser, page, viewer: new Viewer(page, out), problems, elsewhere };
}

/** What a user of the viewer does and sees. */
export class Viewer {
  constructor(page, out) {
    Object.assign(this, { page, out, asked: [] });
    page.on("request", (request) => {
      if (!/\/infer\//.test(request.url())) return;
      const params = /name="params"\r\n\r\n(.*?)\r\n/s.exec(request.postData() ?? "");
      this.asked.push({ model: /infer\/(\w+)/.exec(request.url())[1], params: params ? JSON.parse(params[1]) : null });
    });
  }

  async signIn(url, token) {
    await this.page.goto(`${url}/viewer/`);
    await this.page.fill("#token", token);
    await this.page.click("button");
    await this.ready();
  }

  async ready() {
    await this.page.waitForSelector("body.ready", { state: "attached" });
  }

  async choose(image) {
    await this.page.locator(`#studies li[title="${image}"]`).click();
    await this.page.waitForFunction((id) => ctsam3d.state.image === id && ctsam3d.state.grid, image);
    await this.frames();
  }

  async structure(name) {
    await this.page.fill("#name-filter", name);
    await this.page.keyboard.press("Enter");
    await this.page.waitForFunction((wanted) => ctsam3d.state.structures.active?.name === wanted, name);
  }

  /** Waits until what was asked for is drawn. */
  async frames() {
    await this.page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  }

  /** Places of a voxel in the window: [{ plane: 0 axial, 1 coronal, 2 sagittal, x, y }]. */
  async places(ijk) {
    await this.page.evaluate((voxel) => ctsam3d.scene.goTo(voxel), ijk);
    await this.frames();
    return this.page.evaluate((voxel) => {
      const { left, top } = ctsam3d.scene.canvas.getBoundingClientRect();
      return ctsam3d.scene.placesOf(voxel).map(({ plane, x, y }) => ({ plane, x: x + left, y: y + top }));
    }, ijk);
  }

  async click(ijk, { button = "left", plane = 0 } = {}) {
    const place = (await this.places(ijk)).find((found) => found.plane === plane);
    await this.page.mouse.click(place.x, place.y, { button });
    await this.settled();
  }

  async settled() {
    await this.page.waitForFunction(() => !ctsam3d.work.busy);
    await this.frames();
  }

  /** [{ name, value, clicks, voxels }] in the order in which they lie upon each other. */
  structures() {
    return this.page.evaluate(() =>
      ctsam3d.state.structures.list.map(({ name, value, clicks, mask, colour }) => ({
        ...{ name, value, colour, voxels: mask?.count ?? 0 },
        clicks: clicks.map(({ ijk, positive }) => [...ijk, positive]),
      })),
    );
  }

  async voxels(name) {
    return (await this.structures()).find((structure) => structure.name === name)?.voxels;
  }

  async without3D() {
    await this.page.evaluate(() => (ctsam3d.scene.with3D = false));
    await this.frames();
  }

  async picture(name) {
    await this.frames();
    await this.page.screenshot({ path: `${this.out}/${name}.png`, timeout: PATIENCE_MS });
  }

  message() {
    return this.page.locator("#message p").innerText();
  }
}

/** Runs a test's steps with its input; the result becomes a file, also where it failed. */
export async function run(steps) {
  const input = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
  const session = await open(input.chromium, input.out);
  const result = {};
  try {
    await steps(session, input, result);
  } catch (error) {
    result.failure = String(error.stack ?? error);
    await session.viewer.picture("failure").catch(() => {});
    process.exitCode = 1;
  }
  Object.assign(result, { problems: session.problems, hosts: [...new Set(session.elsewhere)] });
  fs.writeFileSync(`${input.out}/result.json`, JSON.stringify(result));
  await session.browser.close();
}
