// Opens studies of all orientations, clicks on a voxel of each, and tells where on the screen each voxel is drawn.

import { run } from "./browser.mjs";

/** Every voxel of the three planes: [plane, x, y, i, j, k], x and y in pixels of the window. */
const allPlaces = () => {
  const { scene } = ctsam3d;
  const { left, top } = scene.canvas.getBoundingClientRect();
  const [ni, nj, nk] = scene.grid.shape;
  const found = [];
  for (let k = 0; k < nk; k++) {
    for (let j = 0; j < nj; j++) {
      for (let i = 0; i < ni; i++) {
        for (const { plane, x, y } of scene.placesOf([i, j, k])) found.push([plane, x + left, y + top, i, j, k]);
      }
    }
  }
  return found;
};

await run(async ({ viewer, page }, { url, token, studies }, result) => {
  await viewer.signIn(url, token);
  await viewer.without3D();
  await page.uncheck("#expand");
  result.studies = {};
  for (const [image, centre] of Object.entries(studies)) {
    await viewer.choose(image);
    await viewer.structure("block");
    await page.evaluate(() => (ctsam3d.scene.nv.opts.crosshairWidth = 0));
    await viewer.places(centre);
    await viewer.picture(`${image}_scan`);
    const places = await page.evaluate(allPlaces);
    await viewer.click(centre, { plane: 1 });
    await page.evaluate(() => {
      ctsam3d.scene.setClicks([]);
      document.getElementById("opacity").value = 100;
      document.getElementById("opacity").dispatchEvent(new Event("input"));
    });
    await viewer.picture(`${image}_mask`);
    await page.click("#save");
    await page.waitForFunction(() => !ctsam3d.state.unsaved);
    result.studies[image] = { places, structures: await viewer.structures(), asked: viewer.asked.at(-1) };
  }
});
