"use strict";
// Draws rows of charts (kilolayer.report.lab_data) with Plotly, for the page of analyses and for the lens.
// Colour, marker and line identify a series: measured is solid and filled, predicted and reference are dashed and hollow.

const MARKS = Object.entries({circle: "●○", square: "■□", "triangle-up": "▲△", diamond: "◆◇", "triangle-down": "▼▽", star: "★☆"});
const COLOURS = 7;
const MOST_MARKS = 12;
const CONFIG = {responsive: true, displayModeBar: false, displaylogo: false, showTips: false, doubleClick: false};

const ink = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const tint = series => `--curve-${series.number % COLOURS + 1}`;
const mark = series => MARKS[series.number % MARKS.length];
const computed = series => series.kind !== "measured";

/** Escapes the HTML and the %{templates} that Plotly reads from its texts. */
const literal = text => text.replace(/[&<>%]/g, sign => `&#${sign.charCodeAt(0)};`);

/** An index, as in x_l or W_{i+1}; a name such as test_error does not match. */
const INDEX = /(?<![\p{L}\p{N}_])(\p{L}′?)_(\p{L}|\p{N}|\{[^{}]*\})(?![\p{L}_])/gu;

/** The text with indices as subscripts. */
function typeset(text) {
  const part = made("span", ""), rest = text.split(INDEX);
  for (let i = 0; i < rest.length; i += 3) {
    part.append(rest[i]);
    if (i + 2 < rest.length) part.append(rest[i + 1], made("sub", rest[i + 2].replace(/[{}]/g, "")));
  }
  return part;
}

/** A number as `kilolayer.report.canvas.format_tick` writes it: 0.02, 64, 10⁻⁷, 2.66·10⁻⁵. */
function written(exact) {
  const value = Number.isInteger(exact) ? exact : Number(exact.toPrecision(4)), size = Math.abs(value);
  if (value === 0 || (size >= 1e-3 && size < 1e5)) return String(value).replace("-", "−");
  const [factor, exponent] = value.toExponential(2).split("e");
  const power = "10" + String(Number(exponent)).replace(/[-\d]/g, sign => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(sign)]);
  const number = String(Number(factor)).replace("-", "−");
  return number === "1" ? power : `${number}·${power}`;
}

/** A row of charts on common axes; its curves refer to the x axes in `xs` by their index. */
class Row {
  constructor(row, xs) {
    this.row = row;
    this.xs = xs;
    this.hidden = new Set();
    this.charts = [];
  }

  add(div, reading) {
    const chart = {div, reading, frame: null, place: null};
    div.addEventListener("keydown", event => this.step(chart, event));
    this.charts.push(chart);
    return chart;
  }

  /** Shows the curves of one frame. */
  show(chart, frame) {
    const first = chart.frame === null;
    chart.frame = frame;
    Plotly.react(chart.div, frame.curves.flatMap(curve => this.traces(curve, frame.stages)), this.layout(frame.stages), CONFIG);
    if (first) {
      chart.div.on("plotly_hover", ({points}) => this.point(points[0].x, chart));
      // A touch arrives as this event.
      chart.div.on("plotly_click", ({points}) => points.length && this.point(points[0].x));
      chart.div.on("plotly_unhover", () => this.point(null, chart));
    }
    if (chart.place !== null) this.tell(chart, chart.place);
  }

  /** A curve is two traces: a line with all values, and markers at a few of them. */
  traces([number, at, values], stages) {
    const series = this.row.series[number], color = ink(tint(series)), [x, exact] = broken(this.xs[at], values, stages);
    const y = exact.map(value => this.row.log && value <= 0 ? null : value);
    const every = Math.max(1, Math.ceil(x.length / MOST_MARKS)), first = number * Math.ceil(every / this.row.series.length) % every;
    const alone = i => (y[i - 1] ?? null) === null && (y[i + 1] ?? null) === null;
    const marked = [...x.keys()].filter(i => i % every === first || alone(i));
    const common = {type: "scatter", visible: !this.hidden.has(number), cliponaxis: false};
    return [
      {...common, x, y, mode: "lines", line: {color, width: 1.8, dash: computed(series) ? "6px,4px" : "solid"},
       // On a phone, labels would hide the curves; the line below the chart shows the values.
       hoverinfo: innerWidth > 560 ? "text" : "none",
       hovertext: y.map(value => value === null ? "" : `${literal(series.label)}: ${written(value)}`)},
      {...common, x: marked.map(i => x[i]), y: marked.map(i => y[i]), mode: "markers", hoverinfo: "skip",
       marker: {symbol: mark(series)[0], size: 7, color: computed(series) ? ink("--paper") : color, line: {color, width: 1.5}}},
    ];
  }

  layout(stages) {
    const {row} = this, [left, right] = row.across, room = 0.02 * (right - left), [low, high] = row.range;
    const axis = {color: ink("--quiet"), gridcolor: ink("--hair"), fixedrange: true, zeroline: false, automargin: true, exponentformat: "power", tickfont: {size: 12}};
    const title = text => ({text: literal(text).replace(INDEX, (_, base, index) => `${base}<sub>${index.replace(/[{}]/g, "")}</sub>`), standoff: 8});
    return {
      xaxis: {...axis, title: title(row.x), range: [left - room, right + room], showgrid: false, showline: true, linecolor: ink("--quiet"), ticks: "outside",
              dtick: row.whole && right - left < 6 ? 1 : undefined, nticks: 8,
              spikecolor: ink("--quiet"), spikethickness: 1, spikedash: "solid",
              unifiedhovertitle: {text: `${literal(row.x)} %{x}`}},
      yaxis: {...axis, title: title(row.y), nticks: 8, ...(row.log ? logarithmic(low, high) : {range: row.range})},
      font: {family: ink("--sans"), size: 12}, paper_bgcolor: ink("--paper"), plot_bgcolor: ink("--paper"),
      margin: {l: 12, r: 12, t: 10, b: 12}, showlegend: false, dragmode: false, hovermode: "x unified", hoverdistance: -1,
      shapes: stages.map(stage => ({type: "line", layer: "below", x0: stage - 0.5, x1: stage - 0.5, yref: "paper", y0: 0, y1: 1,
                                    line: {color: ink("--quiet"), width: 1, dash: "dot"}})),
      hoverlabel: {bgcolor: ink("--wash"), bordercolor: ink("--hair"), font: {color: ink("--ink")}, align: "left"},
    };
  }

  /** All charts of the row show their values at x, or none for null; `source` is the chart under the pointer. */
  point(x, source) {
    for (const chart of this.charts) {
      chart.place = x;
      this.tell(chart, x, chart === source);
    }
  }

  tell(chart, x, hovered = false) {
    if (!hovered && x !== null) Plotly.Fx.hover(chart.div, {xval: x, yval: this.row.range[0]}, "xy");
    if (!hovered && x === null) Plotly.Fx.unhover(chart.div);
    const told = x === null ? [] : this.curves(chart).flatMap(([number, at, y]) => {
      const value = y[this.xs[at].indexOf(x)] ?? null;
      return value === null ? [] : [`${this.row.series[number].label}: ${written(value)}`];
    });
    chart.reading.textContent = told.length ? [`${this.row.x} ${written(x)}`, ...told].join(" · ") : "";
  }

  curves(chart) {
    return chart.frame.curves.filter(([number]) => !this.hidden.has(number));
  }

  /** The arrow keys, Home and End move along the curves; Escape leaves them. */
  step(chart, event) {
    const places = [...new Set(this.curves(chart).flatMap(([, at, y]) => this.xs[at].filter((_, i) => y[i] !== null)))].sort((a, b) => a - b);
    const last = places.length - 1, now = places.indexOf(chart.place);
    const next = {ArrowRight: Math.min(now + 1, last), ArrowLeft: Math.max(now - 1, 0), Home: 0, End: last}[event.key];
    if (event.key === "Escape") this.point(null);
    if (next === undefined || last < 0) return;
    event.preventDefault();
    this.point(places[next]);
  }

  /** Buttons that explain the series and hide them. */
  legend(list) {
    list.replaceChildren(...this.row.series.map((series, number) => {
      const item = made("li", ""), button = made("button", ""), sample = made("span", mark(series)[1][computed(series) ? 1 : 0]);
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      sample.className = `sample ${series.kind}`;
      sample.style.color = `var(${tint(series)})`;
      sample.setAttribute("aria-hidden", "true");
      button.append(sample, typeset(series.label));
      button.addEventListener("click", () => {
        this.hidden.delete(number) || this.hidden.add(number);
        button.setAttribute("aria-pressed", String(!this.hidden.has(number)));
        this.charts.forEach(chart => this.show(chart, chart.frame));
      });
      item.append(button);
      return item;
    }));
  }
}

/** A curve with a gap at every change of the network's shape: no line joins tensors of two shapes. */
function broken(x, y, stages) {
  const xs = [], ys = [];
  x.forEach((place, i) => {
    if (i && stages.some(stage => x[i - 1] < stage && stage <= place)) { xs.push(place - 0.5); ys.push(null); }
    xs.push(place);
    ys.push(y[i]);
  });
  return [xs, ys];
}

/** An axis with ticks at powers of ten or, over few decades, at 1, 2 and 5. */
function logarithmic(low, high) {
  const range = [low, high].map(Math.log10), [from, to] = range, every = Math.ceil((to - from) / 7), ticks = [];
  for (let power = Math.ceil(Math.floor(from) / every) * every; power <= to; power += every)
    for (const step of to - from < 2.5 ? [1, 2, 5] : [1]) ticks.push(Number(`${step}e${power}`));
  const tickvals = ticks.filter(tick => tick >= low && tick <= high);
  return {type: "log", range, tickmode: "array", tickvals, ticktext: tickvals.map(written)};
}

/** The numbers of a frame as a table, if the table is open. */
function fill(figure, row, {curves}) {
  if (!figure.querySelector("details").open) return;
  const columns = curves.map(([, at, y]) => new Map(row.xs[at].map((x, i) => [x, y[i]])));
  const places = [...new Set(columns.flatMap(column => [...column.keys()]))].sort((a, b) => a - b);
  const head = made("thead", ""), body = made("tbody", "");
  head.append(line([row.row.x, ...curves.map(([number]) => row.row.series[number].label)], "th"));
  body.append(...places.map(x => line([written(x), ...columns.map(column => cell(column.get(x)))], "td")));
  figure.querySelector("table").replaceChildren(head, body);
}

const cell = value => value === null || value === undefined ? "–" : written(value);

function line(texts, tag) {
  const row = made("tr", "");
  row.append(...texts.map(text => Object.assign(made(tag, text), {className: "number short"}, tag === "th" ? {scope: "col"} : {})));
  return row;
}

const made = (tag, text) => Object.assign(document.createElement(tag), {textContent: text});

/** Calls `draw` again whenever the colours change. */
function onTheme(draw) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
