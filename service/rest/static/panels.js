// What is told beside the picture: where the time went, how far two models lie apart, the keypoints as a table.

import { capital, draw, make, ms, spoken } from "./dom.js";

export const STAGES = [
  ["decode", "decode"],
  ["detection", "detection"],
  ["queue", "queue"],
  ["inference", "model"],
  ["postprocess", "keypoints"],
  ["network", "network and rest"],
];

/** Milliseconds by stage, the way to the service and back included. */
function stages({ pose, roundTripMs }) {
  const { decode, detection, queue, inference, postprocess } = pose.timings_ms;
  const network = Math.max(roundTripMs - decode - detection - queue - inference - postprocess, 0);
  return { decode, detection, queue, inference, postprocess, network };
}

/** One bar for each result, all on one scale. `results`: [variant, {pose, roundTripMs}] pairs. */
export function latencyBars(results) {
  const longest = Math.max(...results.map(([, result]) => total(stages(result))), 0.001);
  const bars = results.map(([variant, result]) => {
    const times = stages(result);
    const bar = make("div", { class: "bar", "aria-hidden": "true" });
    for (const [stage] of STAGES) {
      const part = make("span", { class: stage, title: `${stage}: ${ms(times[stage])}` });
      part.style.width = `${(100 * times[stage]) / longest}%`;
      bar.append(part);
    }
    return make(
      "div",
      { class: "latency", "data-model": variant },
      make("p", {}, make("b", {}, capital(variant)), ` ${ms(total(times))}`),
      bar,
    );
  });
  const head = make("tr", {}, make("th", { scope: "col" }, "Stage"));
  head.append(...results.map(([variant]) => make("th", { scope: "col", class: "number" }, capital(variant))));
  const rows = STAGES.map(([stage, words]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("span", { class: `swatch ${stage}`, "aria-hidden": "true" }), capital(words)),
      ...results.map(([, result]) => make("td", { class: "number" }, ms(stages(result)[stage]))),
    ),
  );
  return [...bars, make("table", { class: "stages" }, make("thead", {}, head), make("tbody", {}, ...rows))];
}

const total = (times) => Object.values(times).reduce((sum, each) => sum + each, 0);

/**
 * The other answer with its hands in the order of this one's: each the nearest, undefined where there is none.
 */
export function aligned(one, other) {
  const left = [...other.hands];
  const hands = one.hands.map((hand) => {
    const size = Math.max(spread(hand, "x"), spread(hand, "y"), 1);
    const far = (each) => hand.keypoints.reduce((sum, p, id) => sum + Math.hypot(p.x - each.keypoints[id].x, p.y - each.keypoints[id].y), 0);
    left.sort((a, b) => far(a) - far(b));
    return left.length && far(left[0]) / hand.keypoints.length < size ? left.shift() : undefined;
  });
  return { ...other, hands };
}

/**
 * How far apart two answers for the same image lie.
 * @param other the other answer, aligned with the first one; at least one hand is in both.
 * @returns {hands: [[distance in pixels for each keypoint]], mean, worst: {name, distance}, relative} where relative is
 *   the mean over the size of the hand: the longer side of the first answer's keypoints.
 */
export function distances(one, other) {
  const both = one.hands.map((hand, index) => [hand, other.hands[index]]).filter(([, theirs]) => theirs);
  const hands = both.map(([hand, theirs]) =>
    hand.keypoints.map((p, id) => Math.hypot(p.x - theirs.keypoints[id].x, p.y - theirs.keypoints[id].y)),
  );
  const all = hands.flat();
  const sizes = both.map(([hand]) => Math.max(spread(hand, "x"), spread(hand, "y"), 1));
  const mean = all.reduce((sum, each) => sum + each, 0) / all.length;
  const relative =
    hands.flatMap((each, index) => each.map((d) => d / sizes[index])).reduce((sum, d) => sum + d, 0) / all.length;
  const worst = all.indexOf(Math.max(...all));
  return { hands, mean, relative, worst: { name: one.hands[0].keypoints[worst % 21].name, distance: all[worst] } };
}

function spread(hand, axis) {
  const values = hand.keypoints.map((point) => point[axis]);
  return Math.max(...values) - Math.min(...values);
}

/** The distance between two answers in a sentence, and a bar for each keypoint. */
export function comparison(one, other, { keypoints }) {
  const apart = distances(one, other);
  const longest = Math.max(apart.worst.distance, 1e-9);
  const bars = draw("svg", {
    class: "apart-bars",
    viewBox: "0 0 210 56",
    role: "img",
    "aria-label": "Distance for each keypoint, wrist to little finger; the table of keypoints has the numbers",
    preserveAspectRatio: "none",
  });
  apart.hands[0].forEach((distance, id) => {
    const height = Math.max((54 * distance) / longest, 0.75);
    const bar = draw("rect", { x: id * 10 + 1, y: 56 - height, width: 8, height, fill: keypoints[id].colour });
    bar.append(draw("title", {}, `${spoken(keypoints[id].name)}: ${distance.toFixed(1)} px`));
    bars.append(bar);
  });
  return [
    make(
      "p",
      { class: "apart" },
      "On average ",
      make("b", { id: "distance" }, `${apart.mean.toFixed(1)} px`),
      ` apart, ${(100 * apart.relative).toFixed(1)} % of the hand’s size; at most ${apart.worst.distance.toFixed(1)} px, ` +
        `at the ${spoken(apart.worst.name)}.`,
    ),
    bars,
  ];
}

/** Every keypoint of every hand; with two answers, both and the distance. `onRow` is told of the row pointed at. */
export function keypointTable(results, { keypoints }, onRow) {
  const poses = results.map(([, { pose }]) => pose);
  const two = poses.length > 1;
  const columns = two
    ? [...results.flatMap(([variant]) => [`${capital(variant)} x`, "y"]), "Apart"]
    : ["x", "y", "Score", "± px"];
  const head = make("tr", {}, make("th", { scope: "col" }, "Keypoint"));
  head.append(...columns.map((each) => make("th", { scope: "col", class: "number" }, each)));
  const table = make("table", { class: "keypoints" }, make("thead", {}, head));
  poses[0].hands.forEach((hand, index) => {
    const body = make("tbody");
    if (poses[0].hands.length > 1) {
      const title = make("th", { scope: "rowgroup", colspan: columns.length + 1 }, `Hand ${index + 1}`);
      body.append(make("tr", { class: "group" }, title));
    }
    for (const { id, name } of keypoints) {
      const numbers = two
        ? besideEachOther(...poses.map(({ hands }) => hands[index]?.keypoints[id]))
        : [...position(hand.keypoints[id]), hand.keypoints[id].score.toFixed(2), hand.keypoints[id].sigma.toFixed(1)];
      const swatch = make("span", { class: "swatch round", "aria-hidden": "true" });
      swatch.style.background = keypoints[id].colour;
      const row = make("tr", { "data-hand": index, "data-id": id }, make("th", { scope: "row" }, swatch, spoken(name)));
      row.append(...numbers.map((each) => make("td", { class: "number" }, each)));
      row.addEventListener("pointerenter", () => onRow({ hand: index, id }));
      row.addEventListener("pointerleave", () => onRow(null));
      body.append(row);
    }
    table.append(body);
  });
  return table;
}

const position = ({ x, y }) => [x.toFixed(1), y.toFixed(1)];

const besideEachOther = (one, other) =>
  other
    ? [...position(one), ...position(other), Math.hypot(one.x - other.x, one.y - other.y).toFixed(1)]
    : [...position(one), "–", "–", "–"];

/** A small line of the last values, the newest at the right. */
export class Sparkline {
  #length;
  #line = draw("polyline", { class: "line" });
  #last = draw("circle", { class: "last", r: 2.2 });

  /** @param length the number of values that fill its width */
  constructor(label, length) {
    this.#length = length;
    this.element = draw("svg", { class: "sparkline", viewBox: "0 0 120 28", role: "img", "aria-label": label });
    this.element.append(this.#line, this.#last);
  }

  update(values) {
    const top = Math.max(...values, 1e-9);
    const step = 114 / (this.#length - 1);
    const points = values.map((value, index) => [117 - (values.length - 1 - index) * step, 25 - 22 * (value / top)]);
    this.#line.setAttribute("points", points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" "));
    const [x, y] = points.at(-1) ?? [117, 25];
    this.#last.setAttribute("cx", x);
    this.#last.setAttribute("cy", y);
  }
}
