// A radiologist in OHIF: liver and background clicked, saved by the option of the model, opened again as DICOM SEG.

import { run } from "./browser.mjs";

const POINTS = "Point Prompts";

/** OHIF as MONAI Label brings it. */
class Ohif {
  constructor(page, out, url) {
    Object.assign(this, { page, out, url, asked: [], answered: [] });
    page.on("request", (request) => {
      if (!/\/infer\//.test(request.url())) return;
      const params = /name="params"\r\n\r\n(.*?)\r\n/s.exec(request.postData() ?? "");
      this.asked.push({ url: request.url(), params: params ? JSON.parse(params[1]) : null });
    });
    page.on("response", (reply) => /\/infer\//.test(reply.url()) && this.answered.push(reply.status()));
  }

  async picture(name) {
    await this.page.screenshot({ path: `${this.out}/${name}.png` });
  }

  async openStudy(study) {
    await this.page.goto(`${this.url}/ohif/monai-label?StudyInstanceUIDs=${study}`, { waitUntil: "domcontentloaded" });
    await this.page.locator("#monailabelServerURL").waitFor();
    await this.hideBanner();
    await this.scanDrawn();
    await this.page.fill("#monailabelServerURL", `${this.url}/`);
    await this.page.locator(".settingsTable button.actionButton").click();
    await this.page.locator(".monaiLabelPanel .subtitle").waitFor();
    await this.page.locator("label.tab-label", { hasText: POINTS }).click();
    this.tab = this.page.locator("div.tab", { has: this.page.locator("label.tab-label", { hasText: POINTS }) });
  }

  /** The notice that OHIF is not for diagnosis. */
  async hideBanner() {
    const button = this.page.locator("[data-cy=confirm-and-hide-button]");
    await button.waitFor({ timeout: 60_000 }).catch(() => {});
    if (await button.count()) await button.click();
  }

  async scanDrawn() {
    await this.page.waitForFunction(() =>
      [...document.querySelectorAll("[data-cy=viewport-overlay-bottom-right]")].some((e) => /\(\d+\/\d+\)/.test(e.innerText)),
    );
    await this.page.waitForTimeout(4000); // the last slices
  }

  async models() {
    return (await this.tab.locator("select.selectBox option").allInnerTexts()).map((name) => name.trim());
  }

  async choose(model) {
    await this.tab.locator("select.selectBox").selectOption(model);
  }

  async row(label) {
    await this.tab.locator("tr.clickable-row").filter({ hasText: new RegExp(`^\\s*${label}\\s*$`) }).first().click();
    await this.page.waitForTimeout(500); // OHIF swaps the points of the rows
  }

  /** Clicks on a place of the world, LPS in mm, on the axial pane, which is moved to its slice. */
  async clickAt(lps) {
    const place = await this.page.evaluate((world) => {
      const engine = window.services.cornerstoneViewportService.getRenderingEngine();
      const axial = engine.getViewports().find((one) => Math.abs(one.getCamera().viewPlaneNormal[2]) > 0.9);
      const { viewPlaneNormal: normal, focalPoint, position } = axial.getCamera();
      const off = normal.reduce((sum, n, axis) => sum + n * (world[axis] - focalPoint[axis]), 0);
      const moved = (point) => point.map((v, axis) => v + off * normal[axis]);
      axial.setCamera({ focalPoint: moved(focalPoint), position: moved(position) });
      axial.render();
      const { left, top } = axial.canvas.getBoundingClientRect();
      const [x, y] = axial.worldToCanvas(world);
      return { x: left + x, y: top + y };
    }, lps);
    await this.page.mouse.move(place.x, place.y, { steps: 4 });
    await this.page.mouse.down();
    await this.page.waitForTimeout(150);
    await this.page.mouse.up();
    await this.page.waitForTimeout(1000);
  }

  /** Sets options of a model in OHIF's own dialogue. */
  async options(model, values) {
    await this.page.locator("a", { hasText: "Options / Configurations" }).click();
    await this.page.locator("select[name=selectName]").selectOption(model);
    for (const [key, value] of Object.entries(values)) {
      await this.page.locator(`[id="infer${model}${key}"]`).setChecked(value);
    }
    await this.picture("options");
    await this.page.getByText("Confirm", { exact: true }).last().click();
  }

  /** Voxels of each value in the label map that is drawn. */
  voxels() {
    return this.page.evaluate(() => {
      const counts = {};
      const map = window.services.segmentationService.getLabelmapVolume("1");
      for (const value of map.voxelManager.getCompleteScalarDataArray()) {
        if (value) counts[value] = (counts[value] ?? 0) + 1;
      }
      return counts;
    });
  }

  /** Presses Run, and waits until its reply is in the label map, which it may be meant to leave as it is. */
  async segment({ changes = true } = {}) {
    const before = JSON.stringify(await this.voxels());
    const answers = this.answered.length;
    await this.tab.locator('button[title="Run PointPrompts"]').click();
    await this.until(() => this.answered.length > answers);
    if (this.answered.at(-1) !== 200) throw new Error(`the server answered with ${this.answered.at(-1)}`);
    if (changes) await this.until(async () => ![before, "{}"].includes(JSON.stringify(await this.voxels())));
    await this.page.waitForTimeout(3000); // what is being written to the label map is finished
    return this.voxels();
  }

  async until(condition) {
    for (const end = Date.now() + 240_000; !(await condition()); await this.page.waitForTimeout(200)) {
      if (Date.now() > end) throw new Error("nothing came back");
    }
  }

  /** Opens the study as any viewer would, and its DICOM SEG; the names of its segments and their voxels. */
  async openSegmentation(study) {
    await this.page.goto(`${this.url}/ohif/viewer?StudyInstanceUIDs=${study}`, { waitUntil: "domcontentloaded" });
    const thumbnail = this.page.locator("[data-cy=study-browser-thumbnail-no-image]", { hasText: "SEG" }).first();
    await thumbnail.waitFor();
    await this.page.waitForTimeout(2000);
    await thumbnail.dblclick();
    const yes = this.page.getByText("Yes", { exact: true }).last();
    await yes.waitFor();
    await this.picture("found");
    await yes.click();
    await this.page.waitForFunction(() => window.services?.segmentationService?.getSegmentations?.().length);
    await this.page.waitForTimeout(3000);
    return this.page.evaluate(() =>
      window.services.segmentationService.getSegmentations().map((one) => ({
        label: one.label,
        segments: Object.values(one.segments).map(({ label, cachedStats }) => ({ label, type: cachedStats.type })),
      })),
    );
  }
}

run(async ({ page }, { out, url, study, model, label, inside, outside }, result) => {
  const ohif = new Ohif(page, out, url);
  await page.setViewportSize({ width: 1600, height: 900 }); // three panes beside two panels
  try {
    await ohif.openStudy(study);
    result.models = await ohif.models();
    await ohif.choose(model);
    await ohif.options(model, { expand: false });
    await ohif.row(label);
    await ohif.clickAt(inside);
    await ohif.picture("point");
    result.first = await ohif.segment();
    await ohif.picture("mask");
    await ohif.row("background");
    await ohif.clickAt(outside);
    await ohif.row(label);
    result.second = await ohif.segment();
    await ohif.options(model, { expand: false, save: true });
    result.saved = await ohif.segment({ changes: false });
    await ohif.picture("saved");
    result.reopened = await ohif.openSegmentation(study);
    await ohif.picture("reopened");
  } finally {
    result.asked = ohif.asked;
    await ohif.picture("last").catch(() => {});
  }
});
