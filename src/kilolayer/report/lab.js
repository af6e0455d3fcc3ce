"use strict";
// The page of analyses: one slider of training time for all charts, figures and tables.

const lab = JSON.parse(document.getElementById("lab-data").textContent);
const slider = document.getElementById("time");
const now = () => slider ? lab.iterations[slider.value] : Infinity;

/** The latest snapshot up to the selected time, or the first. */
const current = frames => frames.filter(frame => frame.at === null || frame.at <= now()).pop() ?? frames[0];
const iteration = at => `iteration ${at.toLocaleString("en")}`;
const panels = [];

lab.rows.forEach((values, index) => {
  const section = document.getElementById(`row-${index + 1}`), row = new Row(values, lab.xs);
  row.legend(section.querySelector(".legend"));
  values.panels.forEach((panel, column) => {
    const figure = section.querySelectorAll("figure")[column];
    const chart = row.add(figure.querySelector(".chart"), figure.querySelector(".reading"));
    panels.push({panel, row, chart, figure});
    figure.querySelector("details").addEventListener("toggle", () => fill(figure, row, current(panel.frames)));
  });
});

function show() {
  if (slider) {
    document.getElementById("iteration").textContent = iteration(now());
    slider.setAttribute("aria-valuetext", iteration(now()));
  }
  for (const {panel, row, chart, figure} of panels) {
    const frame = current(panel.frames);
    row.show(chart, frame);
    figure.querySelector(".when").textContent = frame.at === null ? "" : iteration(frame.at);
    figure.querySelector(".note").replaceChildren(typeset(frame.note));
    fill(figure, row, frame);
  }
  lab.figures.forEach((frames, network) => current(frames).values.forEach((text, row) => {
    document.getElementById(`figure-${network}-${row}`).textContent = text || "–";
  }));
}

if (slider) slider.addEventListener("input", show);
onTheme(show);
show();
