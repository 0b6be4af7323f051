
"use strict";
// Draws the charts of a page out of the data beside them: maps of cells, stacked bars, spreads with curves.
// Nothing is fetched and nothing is kept. How cells are packed stands in cells.py.

const MAGNITUDES = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const SHARES = ["#0b4f9e", "#4f88c9", "#a3c3e3", "#efebe4", "#f5c089", "#e18a2d", "#a84e00"];
const MARKS = {1: "#a9afb8", 2: "#7a0047", 3: "#6a717c", 4: "#7d838c", 5: "#e0007a"};
const ZERO = 1, WRONG = 5, FIRST = 16;
const DRAWINGS = document.querySelector("svg").namespaceURI;  // its name looks like an address, so it is not written here
const NARROW = 600, RIGHT = 16;
let LEFT = 108;

const rgb = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
function mixed(ramp, part) {
  const at = Math.max(0, Math.min(1, part)) * (ramp.length - 1), low = Math.min(Math.floor(at), ramp.length - 2);
  const [a, b] = [rgb(ramp[low]), rgb(ramp[low + 1])];
  return a.map((value, n) => Math.round(value + (b[n] - value) * (at - low)));
}

function unpack(text) {
  const bytes = atob(text);
  return Uint16Array.from({length: bytes.length / 2}, (_, n) => bytes.charCodeAt(2 * n) | (bytes.charCodeAt(2 * n + 1) << 8));
}
function numberOf(code) {
  return Number(`${((code - FIRST) % 900) + 100}e${Math.floor((code - FIRST) / 900) - 52}`);
}

function say(value, isPercent, isTiny = Math.abs(value) < 1e-3) {
  if (isPercent) return `${Number((100 * value).toPrecision(3))} %`;
  if (value !== 0 && (isTiny || Math.abs(value) >= 1e6)) {
    const [digits, exponent] = value.toExponential(2).split("e");
    return `${Number(digits)}×10${[...String(Number(exponent))].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`;
  }
  return String(Number(value.toPrecision(3)));
}
function scaled(value, unit) {
  const units = unit === "B" ? ["B", "kB", "MB", "GB", "TB"] : ["", "k", "M", "B", "T"];
  let power = 0;
  for (; value >= 1000 && power < 4; power++) value /= 1000;
  return `${Number(value.toPrecision(3))} ${units[power]}`.trim();
}

function make(name, attributes = {}, ...children) {
  const isDrawn = ["svg", "g", "rect", "line", "path", "text", "image"].includes(name);
  const made = isDrawn ? document.createElementNS(DRAWINGS, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const colorOf = (series) => (series.color < 0 ? "var(--text)" : `var(--color-${series.color % 9})`);
function swatch(color, says) {
  const box = make("span", {class: "swatch"});
  box.style.background = color;
  return make("span", {}, box, says);
}

// ---------------------------------------------------------------------------------------------- axes

const text = (x, y, says, attributes = {}) => make("text", {x, y, ...attributes}, says);

/** Numbers at an axis as far as they have room; words always. */
function ticks(labels, room) {
  const step = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 5000, 1e4, 1e5].find((s) => s * room >= 30) || 1e6;
  const isWord = (label) => Number.isNaN(Number(label[0]));
  const words = labels.flatMap((label, n) => (isWord(label) ? [n] : []));
  return labels.flatMap(([tick], n) => {
    const isFree = words.every((other) => Math.abs(other - n) * room >= 30);
    return words.includes(n) || (Number(tick) % step === 0 && isFree) ? [[n, tick]] : [];
  });
}
function layerAxis(svg, columns, wide, y) {
  for (const [n, tick] of ticks(columns, wide)) {
    const x = LEFT + (n + 0.5) * wide;
    svg.append(make("line", {x1: x, x2: x, y1: y, y2: y + 4, stroke: "var(--line)"}));
    svg.append(text(x, y + 16, tick, {"text-anchor": "middle"}));
  }
  svg.append(text(LEFT + (columns.length * wide) / 2, y + 32, "layer", {"text-anchor": "middle"}));
}
/** Round numbers from 0 on, a few of them. */
function roundSteps(most) {
  const power = 10 ** Math.floor(Math.log10(most / 4 || 1)), step = [1, 2, 5, 10].find((s) => (s * power * 5) >= most) * power;
  return Array.from({length: Math.floor(most / step) + 1}, (_, n) => n * step);
}

// --------------------------------------------------------------------------------------------- charts
// Each gives what is drawn for a width, its legend, and the cells that may be pointed at.

function drawMap(data, figure, width) {
  const rows = data.rows.length, columns = data.columns.length, codes = unpack(figure.cells);
  const wide = (width - LEFT - RIGHT) / columns, high = rows <= 16 ? 22 : Math.max(1.5, Math.min(22, 440 / rows));
  const bottom = 4 + rows * high, ramp = figure.ramp === "share" ? SHARES : MAGNITUDES;
  const part = (value) => {
    const [low, most] = figure.ends, at = figure.scale === "log" ? Math.log : (v) => v;
    return most > low ? (at(value) - at(low)) / (at(most) - at(low)) : 0.5;
  };
  const colorAt = (code) => {
    if (code >= FIRST) return mixed(ramp, part(numberOf(code)));
    return code === ZERO && hasZero(figure) ? rgb(ramp[0]) : rgb(MARKS[code] || "#000000");
  };
  const canvas = make("canvas", {width: columns, height: rows}), context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  codes.forEach((code, n) => code && pixels.data.set([...colorAt(code), 255], 4 * n));
  context.putImageData(pixels, 0, 0);

  const svg = make("svg", {viewBox: `0 0 ${width} ${bottom + 38}`});
  const place = {x: LEFT, y: 4, width: columns * wide, height: rows * high};
  svg.append(make("image", {...place, preserveAspectRatio: "none", href: canvas.toDataURL()}));
  if (high > 8) {  // large cells are kept apart
    for (let n = 1; n < rows; n++) svg.append(make("line", {x1: LEFT, x2: LEFT + place.width, y1: 4 + n * high, y2: 4 + n * high, stroke: "var(--page)", "stroke-width": 2}));
    for (let n = 1; wide > 6 && n < columns; n++) svg.append(make("line", {x1: LEFT + n * wide, x2: LEFT + n * wide, y1: 4, y2: bottom, stroke: "var(--page)"}));
  }
  svg.append(make("rect", {...place, fill: "none", stroke: "var(--line)"}));
  const wrong = [...codes.keys()].filter((n) => codes[n] === WRONG);
  for (const n of wrong.length <= 300 ? wrong : []) {
    const box = {x: LEFT + (n % columns) * wide - 1.5, y: 4 + Math.floor(n / columns) * high - 1.5, width: wide + 3, height: high + 3};
    svg.append(make("rect", {...box, fill: MARKS[WRONG], stroke: "var(--text)", "stroke-width": 1.2}));
  }
  const named = rows <= 16 ? data.rows.map(([tick], n) => [n, tick]) : ticks(data.rows, high * 1.5);
  for (const [n, tick] of named) svg.append(text(LEFT - 8, 4 + (n + 0.5) * high + 4, tick, {"text-anchor": "end", class: data.down ? "" : "name"}));
  if (data.down) svg.append(text(0, 0, data.down, {"text-anchor": "middle", transform: `translate(${LEFT - 48} ${4 + (rows * high) / 2}) rotate(-90)`}));
  layerAxis(svg, data.columns, wide, bottom);

  const texts = data.text_of ? unpack(data.text_of) : [];
  const says = (row, column) => {
    const n = row * columns + column, code = codes[n];
    const number = code >= FIRST ? say(numberOf(code), figure.is_percent) : "0", isNumber = code >= FIRST || code === ZERO;
    const found = isNumber ? `${figure.name} ${number}` : (figure.marks[code] || "nothing there");
    const more = texts[n] ? ` (${data.texts[texts[n] - 1]})` : "";
    return `${data.rows[row][1]}, ${data.columns[column][1]}: ${found}${more}`;
  };
  return {
    svg, rows, columns, says,
    at: (x, y) => [Math.floor((y - 4) / high), Math.floor((x - LEFT) / wide)],
    box: (row, column) => ({x: LEFT + column * wide - 2, y: 2 + row * high, width: wide + 4, height: high + 4}),
    legend: () => mapLegend(figure, ramp, codes),
  };
}
const hasZero = (figure) => figure.scale === "linear" && figure.ends[0] === 0;
function mapLegend(figure, ramp, codes) {
  const found = [];
  if (codes.some((code) => code >= FIRST || (code === ZERO && hasZero(figure)))) {
    const [low, high] = figure.ends, isLog = figure.scale === "log", inWords = (value) => say(value, figure.is_percent, low < 1e-3);
    const middle = inWords(isLog ? Math.sqrt(low * high) : (low + high) / 2);
    const box = make("span", {class: "ramp", title: `in the middle: ${figure.labels ? figure.labels[1] : middle}`});
    box.style.background = `linear-gradient(90deg, ${ramp.join(", ")})`;
    const [first, last] = figure.labels ? [figure.labels[0], figure.labels[2]] : [inWords(low), inWords(high)];
    found.push(make("span", {}, first, box, last), make("span", {}, isLog ? `log scale, middle ${middle}` : "linear scale"));
  }
  for (const [mark, says] of Object.entries(figure.marks)) {
    if (Number(mark) !== ZERO || !hasZero(figure)) found.push(swatch(MARKS[mark], says));
  }
  if (codes.includes(0)) {
    const box = make("span", {class: "swatch"});
    box.style.border = "1px solid var(--line)";
    found.push(make("span", {}, box, "nothing there"));
  }
  return found;
}

function drawBars(data, view, width) {
  const columns = data.columns.length, wide = (width - LEFT - RIGHT) / columns, high = 220, bottom = high + 10;
  const sums = data.columns.map((_, n) => view.series.reduce((sum, series) => sum + series.values[n], 0));
  const steps = roundSteps(Math.max(...sums, 1)), most = Math.max(...sums, steps[steps.length - 1]);
  const yOf = (value) => bottom - (value / most) * high;
  const svg = make("svg", {viewBox: `0 0 ${width} ${bottom + 38}`});
  for (const step of steps) {
    svg.append(make("line", {x1: LEFT, x2: width - RIGHT, y1: yOf(step), y2: yOf(step), stroke: "var(--line)"}));
    svg.append(text(LEFT - 8, yOf(step) + 4, scaled(step, view.unit), {"text-anchor": "end"}));
  }
  data.columns.forEach((_, n) => {
    let below = 0;
    for (const series of view.series) {
      const value = series.values[n];
      if (value) svg.append(make("rect", {x: LEFT + n * wide + 0.5, width: Math.max(1, wide - 1), y: yOf(below + value), height: Math.max(0.3, yOf(below) - yOf(below + value)), fill: colorOf(series)}));
      below += value;
    }
  });
  layerAxis(svg, data.columns, wide, bottom);
  const says = (_, n) => {
    const parts = view.series.filter((series) => series.values[n]).map((series) => `${series.name} ${scaled(series.values[n], view.unit)}`);
    return `${data.columns[n][1]}: ${scaled(sums[n], view.unit)}: ${parts.join(", ")}`;
  };
  return {
    svg, rows: 1, columns, says,
    at: (x) => [0, Math.floor((x - LEFT) / wide)],
    box: (_, n) => ({x: LEFT + n * wide, y: 10, width: wide, height: high}),
    legend: () => view.series.map((series) => swatch(colorOf(series), series.name)),
  };
}

function drawSpread(data, _, width) {
  const wide = width - LEFT - RIGHT, isLog = data.scale === "log", ends = [data.edges[0], data.edges[data.edges.length - 1]];
  const part = (value) => (isLog ? Math.log(value / ends[0]) / Math.log(ends[1] / ends[0]) : (value - ends[0]) / (ends[1] - ends[0]));
  const xOf = (value) => LEFT + part(value) * wide, curves = data.lines.length ? 220 : 0, each = 34;
  const top = 10, below = top + curves + (curves ? 14 : 0), bottom = below + data.rows.length * each;
  const svg = make("svg", {viewBox: `0 0 ${width} ${bottom + 38}`});
  for (const share of curves ? [0, 0.25, 0.5, 0.75, 1] : []) {
    const y = top + (1 - share) * curves;
    svg.append(make("line", {x1: LEFT, x2: LEFT + wide, y1: y, y2: y, stroke: "var(--line)"}));
    svg.append(text(LEFT - 8, y + 4, `${100 * share} %`, {"text-anchor": "end"}));
  }
  for (const tick of isLog ? decades(...ends, wide / 60) : roundSteps(ends[1])) {
    svg.append(make("line", {x1: xOf(tick), x2: xOf(tick), y1: top, y2: bottom + 4, stroke: "var(--line)"}));
    svg.append(text(xOf(tick), bottom + 17, say(tick), {"text-anchor": "middle"}));
  }
  svg.append(text(LEFT + wide / 2, bottom + 34, `${data.across}${isLog ? " (log scale)" : ""}`, {"text-anchor": "middle"}));
  for (const line of [...data.lines].reverse()) {
    const points = line.values.map((value, n) => `${xOf(data.at[n]).toFixed(1)} ${(top + (1 - value) * curves).toFixed(1)}`);
    svg.append(make("path", {d: `M${points.join("L")}`, fill: "none", stroke: colorOf(line), "stroke-width": line.color < 0 ? 2.5 : 1.5}));
  }
  data.rows.forEach((row, n) => {
    const floor = below + (n + 1) * each, most = Math.max(...row.values) || 1;
    row.values.forEach((value, bin) => {
      const [x, end] = [xOf(data.edges[bin]), xOf(data.edges[bin + 1])], high = value && Math.max(1, (value / most) * (each - 6));
      if (value) svg.append(make("rect", {x, y: floor - high, width: Math.max(0.5, end - x - 0.5), height: high, fill: colorOf(row)}));
    });
    svg.append(make("line", {x1: LEFT, x2: LEFT + wide, y1: floor, y2: floor, stroke: "var(--line)"}));
    svg.append(text(LEFT - 8, floor - (row.note ? 17 : 4), row.name, {"text-anchor": "end", class: "name"}));
    svg.append(text(LEFT - 8, floor - 4, row.note || "", {"text-anchor": "end"}));
  });
  const columns = data.lines.length ? data.at.length : data.edges.length - 1;
  const says = (__, n) => {
    if (data.lines.length) return `${data.across} ${say(data.at[n])}: ${data.says}: ${data.lines.map((line) => `${line.name} ${say(line.values[n], true)}`).join(", ")}`;
    const parts = data.rows.filter((row) => row.values[n]).map((row) => `${row.name} ${say(row.values[n], true)}`);
    return `${data.across} from ${say(data.edges[n])} to ${say(data.edges[n + 1])}: ${parts.join(", ") || "nothing"}`;
  };
  const at = (x) => {
    const share = (x - LEFT) / wide;
    return [0, data.lines.length ? Math.round(share * (columns - 1)) : Math.floor(share * columns)];
  };
  const box = (__, n) => (data.lines.length
    ? {x: xOf(data.at[n]) - 0.5, y: top, width: 1, height: bottom - top}
    : {x: xOf(data.edges[n]), y: top, width: xOf(data.edges[n + 1]) - xOf(data.edges[n]), height: bottom - top});
  return {svg, rows: 1, columns, says, at, box, legend: () => data.lines.map((line) => swatch(colorOf(line), line.name))};
}
/** 1, 2 and 5 of each power of ten, or the powers alone, or every other one: no more than there is room for. */
function decades(low, high, most) {
  const all = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) all.push(...[1, 2, 5].map((d) => Number(`${d}e${e}`)));
  const inside = all.filter((v) => v >= low && v <= high);
  const powers = inside.filter((v) => Number.isInteger(Math.log10(v)));
  const step = Math.ceil(powers.length / most);
  return inside.length <= most ? inside : powers.filter((_, n) => n % step === 0);
}

/** Round numbers between two, a few of them. */
function stepsBetween(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 4 || 1)), step = [1, 2, 5, 10].find((s) => s * power * 6 >= high - low) * power;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({length: Math.floor(high / step + 1e-9) - first + 1}, (_, n) => (first + n) * step);
}
/** A frame with both axes; gives where numbers stand in it. */
function frameOf(svg, width, high, xs, ys, across, percent) {
  const bottom = high + 10, part = (v, [low, most]) => (v - low) / (most - low || 1);
  const xOf = (v) => LEFT + part(v, xs) * (width - LEFT - RIGHT), yOf = (v) => bottom - part(v, ys) * high;
  for (const step of stepsBetween(...ys)) {
    svg.append(make("line", {x1: LEFT, x2: width - RIGHT, y1: yOf(step), y2: yOf(step), stroke: "var(--line)"}));
    svg.append(text(LEFT - 8, yOf(step) + 4, say(step, percent, false), {"text-anchor": "end"}));
  }
  for (const step of stepsBetween(...xs)) {
    svg.append(make("line", {x1: xOf(step), x2: xOf(step), y1: bottom, y2: bottom + 4, stroke: "var(--line)"}));
    svg.append(text(xOf(step), bottom + 17, say(step, false, false), {"text-anchor": "middle"}));
  }
  svg.append(text((LEFT + width - RIGHT) / 2, bottom + 34, across, {"text-anchor": "middle"}));
  return {xOf, yOf, bottom};
}
const widened = (values, share) => {
  const low = Math.min(...values), high = Math.max(...values), more = (high - low) * share || 1;
  return [low - more, high + more];
};
const inInterval = ([value, low, high], percent) => `${say(value, percent, false)} [${say(low, percent, false)}, ${say(high, percent, false)}]`;

function drawPlane(data, _, width) {
  const high = Math.min(440, Math.max(260, width * 0.5)), svg = make("svg", {viewBox: `0 0 ${width} ${high + 48}`});
  const ends = widened(data.dots.flatMap((dot) => dot.up), 0.06);
  const ys = data.is_percent ? [Math.max(0, ends[0]), Math.min(1, ends[1]) + 0.004] : ends;
  const {xOf, yOf} = frameOf(svg, width, high, widened(data.dots.flatMap((dot) => dot.across), 0.05), ys, data.across, data.is_percent);
  svg.append(text(0, 0, data.up, {"text-anchor": "middle", transform: `translate(${LEFT - 62} ${10 + high / 2}) rotate(-90)`}));
  for (const line of new Set(data.dots.map((dot) => dot.line).filter((name) => name))) {
    const dots = data.dots.filter((dot) => dot.line === line);
    svg.append(make("path", {d: `M${dots.map((dot) => `${xOf(dot.across[0])} ${yOf(dot.up[0])}`).join("L")}`, fill: "none", stroke: colorOf(dots[0]), "stroke-width": 1, "stroke-opacity": 0.5}));
  }
  for (const dot of data.dots) {
    const x = xOf(dot.across[0]), y = yOf(dot.up[0]), color = colorOf(dot), r = dot.is_large ? 6 : 4;
    svg.append(make("line", {x1: x, x2: x, y1: yOf(dot.up[1]), y2: yOf(dot.up[2]), stroke: color, "stroke-opacity": 0.6}));
    svg.append(make("line", {x1: xOf(dot.across[1]), x2: xOf(dot.across[2]), y1: y, y2: y, stroke: color, "stroke-opacity": 0.6}));
    svg.append(make("rect", {x: x - r, y: y - r, width: 2 * r, height: 2 * r, rx: dot.is_large ? 1 : r, fill: color}));
    if (dot.is_large) {
      const isRight = x > width - 140;
      svg.append(text(x + (isRight ? -10 : 10), y - 9, dot.name, {class: "name", "text-anchor": isRight ? "end" : "start"}));
    }
  }
  const order = [...data.dots.keys()].sort((a, b) => data.dots[a].across[0] - data.dots[b].across[0]);
  const place = (n) => [xOf(data.dots[order[n]].across[0]), yOf(data.dots[order[n]].up[0])];
  const says = (__, n) => {
    const dot = data.dots[order[n]];
    return `${dot.name}: ${data.up} ${inInterval(dot.up, data.is_percent)}, ${data.across} ${inInterval(dot.across, false)}`;
  };
  const at = (x, y) => {
    const far = order.map((___, n) => Math.hypot(place(n)[0] - x, place(n)[1] - y));
    return [0, far.indexOf(Math.min(...far))];
  };
  const box = (__, n) => ({x: place(n)[0] - 8, y: place(n)[1] - 8, width: 16, height: 16});
  const lines = [...new Map(data.dots.filter((dot) => dot.line).map((dot) => [dot.line, dot])).values()];
  return {svg, rows: 1, columns: data.dots.length, says, at, box, legend: () => lines.map((dot) => swatch(colorOf(dot), dot.line))};
}

function drawCurves(data, view, width) {
  const high = 260, svg = make("svg", {viewBox: `0 0 ${width} ${high + 48}`});
  const places = [...new Set(view.lines.flatMap((line) => line.points.map(([place]) => place)))].sort((a, b) => a - b);
  const numbers = view.lines.flatMap((line) => line.points.flatMap(([, number]) => number));
  const xs = places.length > 1 ? [places[0], places[places.length - 1]] : [places[0] - 1, places[0] + 1];
  const ys = view.is_percent ? [0, 1] : [0, Math.max(...numbers) * 1.05 || 1];
  const {xOf, yOf} = frameOf(svg, width, high, xs, ys, data.across, view.is_percent);
  if (data.marked) {
    const [from, to] = data.marked.map(xOf);
    svg.append(make("rect", {x: from, y: 10, width: Math.max(2, to - from), height: high, fill: "var(--accent)", "fill-opacity": 0.14}));
  }
  for (const line of view.lines) {
    const color = colorOf(line);
    if (line.is_level) {
      const y = yOf(line.points[0][1][0]);
      svg.append(make("line", {x1: LEFT, x2: width - RIGHT, y1: y, y2: y, stroke: color, "stroke-dasharray": "5 4"}));
      svg.append(text(width - RIGHT - 4, y - 5, line.name, {"text-anchor": "end"}));
      continue;
    }
    const there = line.points.map(([place, [, low]]) => `${xOf(place)} ${yOf(low)}`);
    const back = [...line.points].reverse().map(([place, [, , most]]) => `${xOf(place)} ${yOf(most)}`);
    svg.append(make("path", {d: `M${[...there, ...back].join("L")}Z`, fill: color, "fill-opacity": 0.15}));
    svg.append(make("path", {d: `M${line.points.map(([place, [value]]) => `${xOf(place)} ${yOf(value)}`).join("L")}`, fill: "none", stroke: color, "stroke-width": 2}));
    for (const [place, [value]] of line.points) svg.append(make("rect", {x: xOf(place) - 3, y: yOf(value) - 3, width: 6, height: 6, rx: 3, fill: color}));
  }
  const says = (_, n) => {
    const parts = view.lines.flatMap((line) => line.points.filter(([place]) => line.is_level || place === places[n]).slice(0, 1).map(([, number]) => `${line.name} ${inInterval(number, view.is_percent)}`));
    return `${data.across} ${say(places[n], false, false)}: ${view.name}: ${parts.join(", ")}`;
  };
  const at = (x) => {
    const far = places.map((place) => Math.abs(xOf(place) - x));
    return [0, far.indexOf(Math.min(...far))];
  };
  const legend = () => {
    const found = view.lines.filter((line) => !line.is_level).map((line) => swatch(colorOf(line), line.name));
    return data.marked ? [...found, swatch("color-mix(in srgb, var(--accent) 25%, transparent)", data.says)] : found;
  };
  return {svg, rows: 1, columns: places.length, says, at, box: (_, n) => ({x: xOf(places[n]) - 1, y: 10, width: 2, height: high}), legend};
}

// --------------------------------------------------------------------------------------- the figures

const DRAW = {map: drawMap, bars: drawBars, spread: drawSpread, plane: drawPlane, curves: drawCurves};

function setUp(figure) {
  const data = JSON.parse(figure.querySelector("script").textContent), choices = data.figures || data.views || [null];
  const tools = make("div", {class: "tools"}), choose = make("div", {class: "switch"}), legend = make("div", {class: "legend"});
  const plot = make("div", {class: "plot", tabindex: 0, role: "img", "aria-label": figure.querySelector("h2").textContent});
  const readout = make("p", {class: "readout", "aria-live": "polite"});
  tools.append(choose, legend);
  figure.append(tools, plot, readout);
  let chosen = 0, drawn = null, cursor = null, width = 0;

  function draw() {
    width = plot.clientWidth;
    LEFT = width < NARROW ? 92 : 108;
    drawn = DRAW[data.type](data, choices[chosen], Math.max(260, width));
    cursor = null;
    readout.textContent = "";
    legend.replaceChildren(...drawn.legend());
    plot.replaceChildren(drawn.svg);
    [...choose.children].forEach((button, n) => button.setAttribute("aria-pressed", n === chosen));
  }
  function point(row, column) {
    if (row < 0 || column < 0 || row >= drawn.rows || column >= drawn.columns) return;
    cursor = {row, column};
    readout.textContent = drawn.says(row, column);
    drawn.svg.querySelector(".cursor")?.remove();
    drawn.svg.append(make("rect", {...drawn.box(row, column), class: "cursor", fill: "none", stroke: "var(--text)", "stroke-width": 1.5}));
  }
  function pointed(event) {
    const box = drawn.svg.getBoundingClientRect(), zoom = drawn.svg.viewBox.baseVal.width / box.width;
    point(...drawn.at((event.clientX - box.left) * zoom, (event.clientY - box.top) * zoom));
  }
  plot.addEventListener("pointermove", pointed);
  plot.addEventListener("pointerdown", pointed);
  plot.addEventListener("keydown", (event) => {
    const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!step) return;
    event.preventDefault();
    if (cursor) point(cursor.row + step[0], cursor.column + step[1]);
    else point(0, 0);
  });
  choices.forEach((choice, n) => {
    if (!choice) return;
    const button = make("button", {type: "button"}, choice.name);
    button.addEventListener("click", () => { chosen = n; draw(); });
    choose.append(button);
  });
  draw();
  new ResizeObserver(() => { if (plot.clientWidth !== width) draw(); }).observe(plot);
}

document.querySelectorAll("figure.chart").forEach(setUp);

document.querySelectorAll(".copied").forEach((block) => {
  const button = block.querySelector("button"), code = block.querySelector("code");
  button.hidden = false;
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(code);
    button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
  });
});

const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement, isDark = getComputedStyle(root).getPropertyValue("color-scheme") === "dark" ||
    (root.style.colorScheme === "" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.style.colorScheme = isDark ? "light" : "dark";
});
