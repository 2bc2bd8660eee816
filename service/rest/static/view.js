// One picture with what was found on it: the skeleton, the uncertainty, the boxes; hovering, and drawing boxes.
//
// The overlay is an SVG whose user units are pixels of the upright image, the frame of the API's coordinates, so a
// keypoint is drawn at exactly its x and y. What should keep its size on the screen is computed from the scale.

import { draw, make, spoken } from "./dom.js";

const FAINTEST = 0.25; // opacity of a keypoint of score 0, as in the service's own drawings: shown, not hidden
const REACH = 18; // screen pixels within which the pointer finds a keypoint
const SHORTEST_DRAG = 6; // screen pixels; less is a click

/** Side and score, as in "R 0.91"; null where nothing was looked for. */
const tag = ({ handedness, score }) => (handedness ? `${handedness.label[0].toUpperCase()} ${score.toFixed(2)}` : null);

export class View {
  #skeleton;
  #media = null;
  #size = { width: 1, height: 1 };
  #pose = null;
  #boxes = [];
  #draft = null;
  #highlit = null; // {hand, id}
  #others = null;
  #tracked = false;

  /**
   * @param skeleton the answer of GET /v1/skeleton
   * @param name the model that this view shows
   * @param onBox is told of a box that was drawn, in pixels of the image
   * @param onHighlight is told of the keypoint under the pointer, {hand, id} or null
   */
  constructor(skeleton, name, { onBox = () => {}, onHighlight = () => {} } = {}) {
    this.#skeleton = skeleton;
    this.onBox = onBox;
    this.onHighlight = onHighlight;
    this.showsUncertainty = true;
    this.mayDrawByTouch = () => false;
    this.overlay = draw("svg", { class: "overlay", role: "group", "aria-label": `${name}: keypoints and boxes` });
    this.tip = make("div", { class: "tip", "aria-hidden": "true" });
    this.tip.hidden = true;
    this.stage = make("div", { class: "stage" }, this.overlay, this.tip);
    this.caption = make("figcaption");
    this.element = make("figure", { class: "view", "data-model": name }, this.stage, this.caption);
    this.#listen();
    new ResizeObserver(() => this.#render()).observe(this.stage);
  }

  get size() {
    return this.#size;
  }

  get media() {
    return this.#media;
  }

  /** Put an image or canvas of this size (pixels) under the overlay. What was drawn before goes. */
  setMedia(media, { width, height }, { mirrored = false } = {}) {
    if (this.#media !== media) {
      this.#media?.remove();
      this.stage.prepend(media);
      this.#media = media;
    }
    this.stage.classList.toggle("mirrored", mirrored);
    this.resize({ width, height });
    this.show(null);
  }

  /** The image turned out to be of this size. */
  resize({ width, height }) {
    if (width === this.#size.width && height === this.#size.height) return;
    this.#size = { width, height };
    this.overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.stage.style.setProperty("--width", width);
    this.stage.style.setProperty("--height", height);
  }

  /** Draw these hands (an answer of the service), or none. */
  show(pose, { tracked = false } = {}) {
    this.#pose = pose;
    this.#tracked = tracked;
    if (pose) this.resize(pose.image);
    this.#render();
  }

  /** Also mark where the other model sees the keypoints: another answer, or null. */
  compareWith(pose) {
    this.#others = pose;
    this.#render();
  }

  setBoxes(boxes) {
    this.#boxes = boxes;
    this.#render();
  }

  setUncertainty(shown) {
    this.showsUncertainty = shown;
    this.#render();
  }

  /** Point at one keypoint, {hand, id}, or at none. */
  highlight(which) {
    this.#highlit = which;
    this.#render();
    const point = which && this.#pose?.hands[which.hand]?.keypoints[which.id];
    this.tip.hidden = !point;
    if (!point) return;
    this.tip.replaceChildren(
      make("b", {}, spoken(point.name)),
      make("span", {}, `x ${point.x.toFixed(1)}, y ${point.y.toFixed(1)}`),
      make("span", {}, `score ${point.score.toFixed(2)}, ± ${point.sigma.toFixed(1)} px`),
    );
    const across = (this.#mirrored ? this.#size.width - point.x : point.x) / this.#size.width;
    const down = point.y / this.#size.height;
    this.tip.classList.toggle("left", across > 0.6);
    this.tip.classList.toggle("above", down > 0.6);
    this.tip.style.left = `${Math.min(Math.max(across, 0), 1) * 100}%`;
    this.tip.style.top = `${Math.min(Math.max(down, 0), 1) * 100}%`;
  }

  get #mirrored() {
    return this.stage.classList.contains("mirrored");
  }

  /** Pixels of the image in one screen pixel. */
  get #scale() {
    return this.#size.width / Math.max(this.stage.clientWidth, 1);
  }

  #render() {
    const parts = [];
    this.#pose?.hands.forEach((hand, index) => {
      if (this.#tracked || hand.handedness) parts.push(this.#box(hand.box, this.#tracked ? "tracked" : "found", tag(hand)));
      parts.push(this.#hand(hand, index));
    });
    this.#boxes.forEach((box, index) => parts.push(this.#box(box, "roi", `Box ${index + 1}`)));
    if (this.#draft) parts.push(this.#box(this.#draft, "draft"));
    // The keyboard's place in the overlay must survive: its group is made anew with every answer.
    const focused = document.activeElement?.closest?.(".hand");
    const hadFocus = focused && this.overlay.contains(focused) ? focused.dataset.hand : null;
    this.overlay.replaceChildren(...parts);
    if (hadFocus !== null) this.overlay.querySelector(`.hand[data-hand="${hadFocus}"]`)?.focus();
  }

  #hand(hand, index) {
    const points = hand.keypoints;
    const { keypoints, edges } = this.#skeleton;
    const extent = (axis) => Math.max(...points.map((p) => p[axis])) - Math.min(...points.map((p) => p[axis]));
    const least = 0.25 * Math.min(this.#size.width, this.#size.height);
    const scale = this.#scale;
    const radius = Math.max(0.014 * Math.max(extent("x"), extent("y"), least), 2.6 * scale);
    const opacity = (point) => (FAINTEST + (1 - FAINTEST) * point.score).toFixed(3);
    const group = draw("g", {
      class: "hand",
      tabindex: 0,
      role: "img",
      "data-hand": index,
      "aria-label":
        `Hand ${index + 1}: 21 keypoints, score ${hand.score.toFixed(2)}. ` +
        "The arrow keys step through them; the table of keypoints has the same numbers.",
    });
    if (this.showsUncertainty) {
      for (const point of points) {
        group.append(
          draw("circle", {
            class: "sigma",
            cx: point.x,
            cy: point.y,
            r: Math.max(point.sigma, 0),
            stroke: keypoints[point.id].colour,
            fill: keypoints[point.id].colour,
            "stroke-opacity": opacity(point),
          }),
        );
      }
    }
    // Dark rims first, so that they never cover a coloured line.
    for (const outline of [true, false]) {
      for (const [from, to] of edges) {
        const [start, end] = [points[from], points[to]];
        group.append(
          draw("line", {
            class: outline ? "rim" : "bone",
            x1: start.x,
            y1: start.y,
            x2: end.x,
            y2: end.y,
            stroke: outline ? null : keypoints[to].colour,
            "stroke-width": outline ? radius + 2.4 * scale : radius,
            "stroke-opacity": opacity(end),
          }),
        );
      }
      for (const point of points) {
        group.append(
          draw("circle", {
            class: outline ? "rim" : "keypoint",
            "data-id": outline ? null : point.id,
            cx: point.x,
            cy: point.y,
            r: outline ? radius + 1.2 * scale : radius,
            fill: outline ? null : keypoints[point.id].colour,
            "fill-opacity": opacity(point),
          }),
        );
      }
    }
    const others = this.#others?.hands[index]?.keypoints;
    if (others) {
      for (const [point, other] of points.map((each, id) => [each, others[id]])) {
        const attributes = { x1: point.x, y1: point.y, x2: other.x, y2: other.y, class: "apart" };
        group.append(draw("line", { ...attributes, "stroke-width": 1.5 * scale }));
        group.append(draw("circle", { class: "other", cx: other.x, cy: other.y, r: 2.5 * scale, "stroke-width": scale }));
      }
    }
    if (this.#highlit?.hand === index) {
      const point = points[this.#highlit.id];
      const ring = { class: "highlight", cx: point.x, cy: point.y, r: radius + 5 * scale, "stroke-width": 2 * scale };
      group.append(draw("circle", ring));
    }
    return group;
  }

  #box(box, kind, text = null) {
    const scale = this.#scale;
    const attributes = { x: box.x, y: box.y, width: box.width, height: box.height };
    const group = draw("g", { class: kind });
    group.append(draw("rect", { class: "halo", ...attributes, "stroke-width": 4 * scale }));
    group.append(
      draw("rect", {
        class: "edge",
        ...attributes,
        "stroke-width": 2 * scale,
        "stroke-dasharray": kind === "roi" ? null : `${7 * scale} ${5 * scale}`,
      }),
    );
    if (text !== null) {
      const size = 13 * scale;
      const y = box.y > 1.6 * size ? box.y - 0.45 * size : box.y + 1.2 * size;
      group.append(draw("text", { x: box.x + 0.3 * size, y, "font-size": size }, text));
    }
    return group;
  }

  // The pointer and the keyboard

  /** Where an event is in the image, in its pixels. */
  #inImage(event) {
    const frame = this.stage.getBoundingClientRect();
    const across = (event.clientX - frame.left) / frame.width;
    return {
      x: (this.#mirrored ? 1 - across : across) * this.#size.width,
      y: ((event.clientY - frame.top) / frame.height) * this.#size.height,
    };
  }

  #listen() {
    let from = null;
    const stage = this.stage;
    stage.addEventListener("pointerdown", (event) => {
      const draws = event.pointerType === "touch" ? this.mayDrawByTouch() : event.button === 0;
      if (!draws || !this.#media) return;
      from = { at: this.#inImage(event), x: event.clientX, y: event.clientY };
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      if (from) {
        const far = Math.hypot(event.clientX - from.x, event.clientY - from.y) >= SHORTEST_DRAG;
        if (!far && !this.#draft) return;
        this.onHighlight(null);
        this.#draft = this.#boxBetween(from.at, this.#inImage(event));
        this.#render();
      } else if (event.pointerType !== "touch") {
        this.onHighlight(this.#nearest(event));
      }
    });
    stage.addEventListener("pointerup", (event) => {
      const box = this.#draft;
      if (!box && event.pointerType === "touch") this.onHighlight(this.#nearest(event));
      from = this.#draft = null;
      this.#render();
      if (box && box.width >= 1 && box.height >= 1) this.onBox(box);
    });
    stage.addEventListener("pointercancel", () => {
      from = this.#draft = null;
      this.#render();
    });
    stage.addEventListener("pointerleave", () => from || this.onHighlight(null));
    stage.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        from = this.#draft = null;
        this.onHighlight(null);
        return;
      }
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const group = event.target.closest(".hand");
      if (!step || !group) return;
      event.preventDefault();
      const hand = Number(group.dataset.hand);
      const id = this.#highlit?.hand === hand ? this.#highlit.id + step : step > 0 ? 0 : -1;
      const count = this.#skeleton.keypoints.length;
      this.onHighlight({ hand, id: (id + count) % count });
    });
    stage.addEventListener("focusout", (event) => event.relatedTarget && this.onHighlight(null));
  }

  /** Whole pixels inside the image. */
  #boxBetween(one, other) {
    const clamp = (value, most) => Math.min(Math.max(Math.round(value), 0), most);
    const [left, right] = [clamp(Math.min(one.x, other.x), this.#size.width), clamp(Math.max(one.x, other.x), this.#size.width)];
    const [top, bottom] = [clamp(Math.min(one.y, other.y), this.#size.height), clamp(Math.max(one.y, other.y), this.#size.height)];
    return { x: left, y: top, width: right - left, height: bottom - top };
  }

  #nearest(event) {
    const at = this.#inImage(event);
    let best = null;
    let least = REACH * this.#scale;
    this.#pose?.hands.forEach((hand, index) => {
      for (const point of hand.keypoints) {
        const distance = Math.hypot(point.x - at.x, point.y - at.y);
        if (distance < least) [least, best] = [distance, { hand: index, id: point.id }];
      }
    });
    return best;
  }
}
