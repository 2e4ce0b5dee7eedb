// A radiologist in OHIF: liver and background clicked, saved by the option of the model, opened again as DICOM SEG.

import { run } from "./browser.mjs";
import { Ohif } from "./ohif.mjs";

run(async ({ page }, { out, url, study, model, label, inside, outside }, result) => {
  const ohif = new Ohif(page, out, url);
  try {
    await ohif.openStudy(study);
    await ohif.openPoints();
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
