// One study from signing in to the next sample: clicks, undo, redo, keys, a new name, spreading, errors, save, reload.

import { run } from "./browser.mjs";

const ERROR = { status: 400, contentType: "application/json", body: '{"detail": "click must be nice", "request_id": "x"}' };

await run(async ({ viewer, page, problems }, { url, token, image, liver, inside, spleen, lesion }, result) => {
  const counts = (result.counts = {});
  const key = async (keys) => {
    await page.keyboard.press(keys);
    await viewer.settled();
    return viewer.voxels("liver");
  };

  await viewer.signIn(url, token);
  await viewer.choose(image);
  await viewer.picture("opened");
  await viewer.without3D();
  await page.uncheck("#expand");

  await viewer.structure("liver");
  await viewer.click(liver);
  counts.one = await viewer.voxels("liver");
  result.timing = await page.innerText("#timing");
  await viewer.picture("clicked");
  await viewer.click(inside, { button: "right", plane: 2 });
  counts.two = await viewer.voxels("liver");
  counts.undone = await key("Control+z");
  counts.redone = await key("Control+y");
  counts.nothing = (await key("Control+z"), await key("Control+z"));
  counts.again = await key("Control+Shift+Z");

  await page.check("#expand");
  await page.waitForFunction(() => ctsam3d.work.spreading.length === 1);
  result.spreading = await page.innerText("#status");
  const before = viewer.asked.length;
  await page.waitForFunction(() => !ctsam3d.work.spreading.length || ctsam3d.work.running);
  while (viewer.asked.length === before) await viewer.frames();
  result.asked = viewer.asked.slice(before - 1, before + 1);
  await page.uncheck("#expand");
  await viewer.settled();
  counts.unspread = await viewer.voxels("liver");

  await viewer.structure("spleen");
  await viewer.places(spleen);
  await page.keyboard.press("p");
  await viewer.settled();
  await viewer.structure("my lesion");
  await viewer.click(lesion, { button: "right" });
  result.objection = await viewer.message();
  await viewer.click(lesion);
  result.model = viewer.asked.at(-1).model;

  const kept = await viewer.voxels("my lesion");
  await page.route("**/infer/**", (route) => route.fulfill(ERROR));
  await viewer.click(liver);
  result.refused = await viewer.message();
  await page.unroute("**/infer/**");
  await page.route("**/infer/**", (route) => route.abort());
  await viewer.click(liver);
  result.silent = await viewer.message();
  await page.unroute("**/infer/**");
  result.taken_back = (await viewer.voxels("my lesion")) === kept;
  problems.splice(0); // the two failures above, which Chromium notes too

  await page.keyboard.press("Control+s");
  await page.waitForFunction(() => !ctsam3d.state.unsaved);
  result.status = await page.innerText("#status");
  result.saved = await viewer.structures();
  await page.reload();
  await viewer.ready();
  result.reloaded = await viewer.structures();
  await viewer.places(liver);
  await viewer.picture("reloaded");

  await page.keyboard.press("x");
  await page.waitForFunction((id) => ctsam3d.state.grid && ctsam3d.state.image !== id, image);
  result.next = await page.evaluate(() => ctsam3d.state.image);
});
