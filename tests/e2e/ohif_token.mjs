// An annotator whose server asks for a token: signs in, takes a study from the list, clicks, begins anew, and may not train.

import { run } from "./browser.mjs";
import { Ohif } from "./ohif.mjs";

run(async ({ page }, { out, url, token, study, label, other, model, inside }, result) => {
  const ohif = new Ohif(page, out, url);
  try {
    await ohif.openFromList(token, study);
    result.address = page.url();
    await ohif.openPoints();
    await ohif.choose(model);
    await ohif.options(model, { expand: false });
    await ohif.row(label);
    result.none = await ohif.refused();
    await ohif.picture("refused");
    await ohif.clickAt(inside);
    result.voxels = await ohif.segment();
    await ohif.picture("mask");
    await ohif.clearAll();
    await ohif.row(other);
    await ohif.clickAt(inside);
    await ohif.segment({ changes: false }); // OHIF lets no structure take voxels of another one
    await ohif.openLearning();
    await ohif.button("Update Model").click();
    result.training = await ohif.notice("Failed to RUN");
    await ohif.picture("training");
  } finally {
    result.asked = ohif.asked;
    await ohif.picture("last").catch(() => {});
  }
});
