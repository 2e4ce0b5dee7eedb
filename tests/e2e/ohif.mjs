// What a user of OHIF does and sees: OHIF as MONAI Label brings it, and the panel of MONAI Label in it.

const POINTS = "Point Prompts";
const LEARNING = "Active Learning";
const WINDOW = { width: 1600, height: 900 }; // three panes beside two panels

export class Ohif {
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
    await this.page.setViewportSize(WINDOW);
    await this.page.goto(`${this.url}/ohif/monai-label?StudyInstanceUIDs=${study}`, { waitUntil: "domcontentloaded" });
    await this.arrive();
  }

  /** Signs in and chooses a study and MONAI Label from OHIF's list. */
  async openFromList(token, study) {
    await this.page.setViewportSize(WINDOW);
    await this.page.goto(`${this.url}/ohif/`, { waitUntil: "domcontentloaded" });
    await this.page.fill("#token", token);
    await this.picture("signin");
    await this.page.locator("form button").click();
    await this.page.locator(`[data-cy="studyRow-${study}"]`).click();
    const mode = this.page.locator(`[data-cy="mode-monai-label-${study}"]`);
    await mode.waitFor();
    await this.picture("list");
    await mode.click();
    await this.arrive();
  }

  /** Waits until a study is drawn in MONAI Label's mode, and connects, by the address that the panel has. */
  async arrive() {
    await this.page.locator("#monailabelServerURL").waitFor();
    await this.scanDrawn();
    await this.hideBanner();
    await this.page.locator(".settingsTable button.actionButton").click();
    await this.page.locator(".monaiLabelPanel .subtitle").waitFor();
  }

  async openTab(name) {
    await this.page.locator("label.tab-label", { hasText: name }).click();
    return this.page.locator("div.tab", { has: this.page.locator("label.tab-label", { hasText: name }) });
  }

  async openPoints() {
    this.tab = await this.openTab(POINTS);
  }

  /** The notice that OHIF is not for diagnosis, which it shows once. */
  async hideBanner() {
    const button = this.page.locator("[data-cy=confirm-and-hide-button]");
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

  async clearAll() {
    await this.tab.getByText("Clear All Points", { exact: true }).click();
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

  /** Sets options of a model in OHIF's own dialogue; of its clicks, or of its training. */
  async options(model, values, section = "infer") {
    await this.page.locator("a", { hasText: "Options / Configurations" }).click();
    await this.page.locator("select[name=selectSection]").selectOption(section);
    await this.page.locator("select[name=selectName]").selectOption(model);
    for (const [key, value] of Object.entries(values)) {
      const field = this.page.locator(`[id="${section}${model}${key}"]`);
      await (typeof value === "boolean" ? field.setChecked(value) : field.fill(String(value)));
    }
    await this.picture(`options_${section}`);
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

  // ---- active learning ----------------------------------------------------------------------------------------------

  async openLearning() {
    this.learning = await this.openTab(LEARNING);
    await this.button("Next Sample").waitFor();
  }

  button(name) {
    return this.learning.locator("button", { hasText: name });
  }

  strategies() {
    return this.learning.locator("select option").allInnerTexts();
  }

  /** Asks for the next scan by a strategy; what is said of it, by field. */
  async nextSample(strategy) {
    await this.learning.locator("select").selectOption(strategy);
    await this.button("Next Sample").click();
    const rows = this.page.locator("div.nextSampleForm tbody tr");
    await rows.first().waitFor();
    return Object.fromEntries(await rows.evaluateAll((all) => all.map((r) => [...r.cells].map((c) => c.innerText.trim()))));
  }

  /** Accepts the scan, which loads the page anew. */
  async takeSample(study) {
    this.page.once("dialog", (dialog) => dialog.accept());
    await this.page.locator("div.nextSampleForm button", { hasText: "OK" }).click();
    await this.page.waitForURL(`**${study}`, { waitUntil: "domcontentloaded" });
    await this.arrive();
  }

  /** Presses the button of the training, and waits until it has another name. */
  async pressTraining(name, then) {
    await this.button(name).click();
    await this.button(then).waitFor();
  }

  /** The bars: { "Training": "3/1000 epochs completed", … }. */
  bars() {
    return this.learning
      .locator("tr:has(td[title])")
      .evaluateAll((rows) => Object.fromEntries(rows.map((r) => [r.cells[0].innerText.replace(":", ""), r.cells[1].title])));
  }

  /** What a notice says, once there is one that begins so. */
  async notice(begin) {
    const found = this.page.getByText(new RegExp(`^${begin}`)).last();
    await found.waitFor();
    return found.innerText();
  }

  /** Series that are open. */
  opened() {
    return this.page.evaluate(() =>
      window.services.displaySetService.getActiveDisplaySets().map((one) => one.SeriesInstanceUID),
    );
  }

  // -------------------------------------------------------------------------------------------------------------------

  /** Presses Run where the server has a reason to refuse; what the notice says. */
  async refused() {
    await this.tab.locator('button[title="Run PointPrompts"]').click();
    return this.notice("Failed to Run Inference");
  }

  async until(condition) {
    for (const end = Date.now() + 240_000; !(await condition()); await this.page.waitForTimeout(200)) {
      if (Date.now() > end) throw new Error("nothing came back");
    }
  }

  /** Opens the study as any viewer would, and its DICOM SEG; its segments: name, type, colour, voxels that are drawn. */
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
    return this.page.evaluate(() => {
      const { segmentationService: service, viewportGridService: grid } = window.services;
      return service.getSegmentations().map(({ segmentationId, label: name, segments }) => {
        const counts = {}; // what comes from an archive is kept as slices, not as a volume
        for (const id of service.getSegmentation(segmentationId).representationData.Labelmap.imageIds) {
          for (const value of window.cornerstone.cache.getImage(id).voxelManager.getScalarData()) {
            counts[value] = (counts[value] ?? 0) + 1;
          }
        }
        const viewport = grid.getActiveViewportId();
        const told = Object.values(segments).map(({ segmentIndex, label, cachedStats }) => ({
          label,
          type: cachedStats.type,
          colour: [...service.getSegmentColor(viewport, segmentationId, segmentIndex)].slice(0, 3),
          voxels: counts[segmentIndex] ?? 0,
        }));
        return { label: name, segments: told };
      });
    });
  }
}
