// A slider under the sample grids shows the one of its step.
for (const slides of document.querySelectorAll(".slides")) {
  const range = slides.querySelector("input");
  const grids = slides.querySelectorAll("img");
  range?.addEventListener("input", () => {
    grids.forEach((grid, i) => { grid.hidden = i !== range.valueAsNumber; });
    slides.querySelector("output").value = grids[range.valueAsNumber].dataset.step;
  });
}
