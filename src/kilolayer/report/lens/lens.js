"use strict";
// The lens's page: the settings go into the address; theory is drawn at once, the measurement when it arrives.

const form = document.getElementById("choice");
const at = id => document.getElementById(id);
const STALE = ["equation", "meaning", "size", "drawing", "charts"];
const figures = [...document.querySelectorAll(".charts figure")];
const places = [];
let asked = new AbortController(), waiting;

/** The settings, without those that the shortcut does not use. */
function picked() {
  const words = new URLSearchParams(new FormData(form));
  for (const field of form.querySelectorAll(".field[hidden] [name]")) words.delete(field.name);
  return words;
}

/** Shows only the fields of the shortcut, and allows only the depths of the branch. */
function fit() {
  for (const field of form.querySelectorAll("[data-for]:not([data-for=''])"))
    field.hidden = !field.dataset.for.split(" ").includes(form.shortcut.value);
  range("depth").step = form.branch.selectedOptions[0].dataset.step;
  form.querySelectorAll("[data-of]").forEach(slider => { slider.value = form[slider.dataset.of].value; });
}

const range = name => form.querySelector(`[data-of=${name}]`);

async function ask(what, words) {
  const response = await fetch(`${what}?${words}`, {signal: asked.signal});
  const answer = await response.json();
  if (answer && answer.error) throw new Error(answer.error);
  return answer;
}

/** Requests both; a request for settings that have changed is cancelled, here and on the server. */
async function look(words) {
  asked = new AbortController();
  const {signal} = asked;
  try {
    draw(await ask("predict", words));
    at("state").textContent = "Measuring …";
    draw(await ask("measure", words));
  } catch (error) {
    if (!signal.aborted) refuse(error instanceof TypeError ? "The lens no longer answers; start it again: kilolayer lens" : error.message);
  }
}

function refuse(text) {
  at("error").textContent = text;
  at("state").textContent = "";
  for (const part of STALE) at(part).classList.add("stale");
}

function draw(answer) {
  at("error").textContent = "";
  for (const part of STALE) at(part).classList.remove("stale");
  for (const id of ["equation", "meaning"]) if (at(id).innerHTML !== answer[id]) at(id).innerHTML = answer[id];
  at("size").textContent = answer.size + ".";
  at("state").textContent = answer.measured;
  at("drawing").innerHTML = answer.drawing;
  if (!answer.lab) return at("charts").classList.add("stale");  // no prediction: until the measurement arrives
  const {rows, xs} = answer.lab;
  figures.forEach((figure, number) => redraw(figure, rows[number], xs, number));
}

function redraw(figure, values, xs, number) {
  const place = places[number] ??= {figure, row: new Row(values, xs)};
  const {row} = place, same = place.chart && JSON.stringify(row.row.series) === JSON.stringify(values.series);
  Object.assign(row, {row: values, xs});
  if (!same) row.hidden.clear();
  place.chart ??= row.add(figure.querySelector(".chart"), figure.querySelector(".reading"));
  if (!same) row.legend(figure.querySelector(".legend"));
  place.frame = values.panels[0].frames[0];
  row.show(place.chart, place.frame);
  place.chart.div.setAttribute("aria-label", told(values, place.frame));
  fill(figure, row, place.frame);
}

const told = (values, frame) => `${values.y} by ${values.x}: ` + frame.curves.map(([number, , y]) =>
  `${values.series[number].label} from ${cell(y[0])} to ${cell(y[y.length - 1])}`).join("; ");

figures.forEach((figure, number) => figure.querySelector("details").addEventListener("toggle", () =>
  places[number] && fill(figure, places[number].row, places[number].frame)));

form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("input", event => {
  const {of} = event.target.dataset;
  if (of) form[of].value = event.target.value;
  if (event.target === form.branch) {
    fit();
    form.depth.value = range("depth").value;
  }
  fit();
  const words = picked();
  history.replaceState(null, "", "?" + words);
  asked.abort();
  at("state").textContent = "Predicting …";
  clearTimeout(waiting);
  waiting = setTimeout(look, 60, words);
});

function start() {
  const words = new URLSearchParams(location.search);
  for (const [name, value] of words) if (form.elements[name]?.name === name) form.elements[name].value = value;
  for (const select of form.querySelectorAll("select")) if (select.selectedIndex < 0) select.value = select.querySelector("[selected]").value;
  fit();
  look(words);
}

onTheme(() => places.forEach(({row, chart, frame}) => row.show(chart, frame)));
start();
