// A radiologist in OHIF: the next scan, a training watched and stopped, another one that ends.

import { run } from "./browser.mjs";
import { Ohif } from "./ohif.mjs";

const MODEL = "ctsam3d";

run(async ({ page }, { out, url, study }, result) => {
  const ohif = new Ohif(page, out, url);
  const info = async () => (await (await page.request.get(`${url}/info/`)).json()).train_stats[MODEL];
  try {
    await ohif.openStudy(study);
    await ohif.openLearning();
    result.strategies = await ohif.strategies();
    result.before = await ohif.bars();
    result.sample = await ohif.nextSample("first");
    await ohif.picture("sample");
    await ohif.takeSample(result.sample["Study Instance UID"]);
    result.opened = await ohif.opened();
    await ohif.openLearning();
    await ohif.picture("opened");

    await ohif.options(MODEL, { max_epochs: 1000 }, "train");
    await ohif.pressTraining("Update Model", "Stop Training");
    await ohif.until(async () => ((await info()).epoch ?? 0) >= 2);
    await ohif.until(async () => /^([2-9]|\d{2,})\/1000 epochs/.test((await ohif.bars()).Training));
    result.running = await ohif.bars();
    await ohif.picture("training");
    await ohif.pressTraining("Stop Training", "Update Model");
    await ohif.until(async () => (await ohif.bars()).Training === "Not Running");
    result.stopped = await info();

    await ohif.options(MODEL, { max_epochs: 1 }, "train");
    await ohif.pressTraining("Update Model", "Stop Training");
    await ohif.button("Update Model").waitFor(); // by itself
    result.ended = await ohif.bars();
    result.done = await info();
    await ohif.picture("trained");
  } finally {
    await ohif.picture("last").catch(() => {});
  }
});
