// The webcam, live: frames over a WebSocket, answers drawn on the very frames that they are about.
//
// It works at the speed the service has. The camera's frames are not queued: a frame is sent when there is room, the
// service answers the newest that it has (`latest_only`), and what was overtaken on either side counts as dropped.

import { streamProtocols } from "./api.js";

const QUALITY = 0.85; // of the JPEGs that are sent
const UNDER_WAY = 2; // one being estimated, one waiting its turn
const MOST_UNDER_WAY = 6; // with a slow service, fresher frames overtake the one that waits,
const RENEW_AFTER_MS = 250; // but no more often than this
export const REMEMBERED = 60; // latencies
const FPS_OVER_MS = 3000;
const PAUSES_MS = [500, 1000, 2000, 4000]; // before connecting again

/** Close codes that mean "later": gone without a word, restart, busy, failed. */
const LATER = new Set([1001, 1005, 1006, 1011, 1012, 1013]);

/** The camera could not be had; the message says why, and what to do. */
export class NoCamera extends Error {}

/** The webcam, and who wants its frames. */
export class Camera {
  #stream;
  #stopped = false;

  static async open() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new NoCamera("Browsers lend the camera only to pages from this computer or over https, and this one is neither.");
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } },
        audio: false,
      });
    } catch (error) {
      throw new NoCamera(WHY_NOT[error.name] ?? `The camera could not be started: ${error.message}.`, { cause: error });
    }
    const camera = new Camera(stream);
    await camera.video.play();
    camera.#watch();
    return camera;
  }

  constructor(stream) {
    this.#stream = stream;
    this.video = document.createElement("video");
    this.video.muted = this.video.playsInline = true;
    this.video.srcObject = stream;
    this.onFrame = () => {};
    this.onEnd = () => {};
    stream.getVideoTracks()[0].addEventListener("ended", () => this.#stopped || this.onEnd());
  }

  get size() {
    return { width: this.video.videoWidth, height: this.video.videoHeight };
  }

  /** Whether people expect to see themselves as in a mirror. */
  get facesUser() {
    return this.#stream.getVideoTracks()[0].getSettings().facingMode !== "environment";
  }

  stop() {
    this.#stopped = true;
    for (const track of this.#stream.getTracks()) track.stop();
    this.video.srcObject = null;
  }

  #watch() {
    const next = (call) =>
      this.video.requestVideoFrameCallback ? this.video.requestVideoFrameCallback(call) : requestAnimationFrame(call);
    const frame = () => {
      if (this.#stopped) return;
      if (this.video.videoWidth) this.onFrame(this.video);
      next(frame);
    };
    next(frame);
  }
}

const WHY_NOT = {
  NotAllowedError: "The browser was not allowed to use the camera. Its address bar has a button to change that.",
  NotFoundError: "There is no camera on this device.",
  NotReadableError: "Another program is using the camera.",
  OverconstrainedError: "The camera has no mode that fits.",
};

/** One stream of frames to one model. */
export class LiveStream {
  #variant;
  #on;
  #socket = null;
  #waits = new Map(); // id -> {canvas, sentAt}, in order
  #spare = []; // canvases to use again
  #encoding = false;
  #next = 0;
  #lastSentAt = -Infinity;
  #answeredAt = [];
  #rois = [];
  #failures = 0;
  #reason = null;
  #timer = null;
  #closed = false;

  /**
   * @param variant the model
   * @param on {answer(answer, canvas), connected(), lost(reason), refused(problem), problem(problem)}: what happened;
   *   the canvas holds the frame that the answer is about until the next answer
   */
  constructor(variant, on) {
    this.#variant = variant;
    this.#on = on;
    this.latencies = [];
    this.frames = 0;
    this.answered = 0;
    this.dropped = 0;
    this.#connect();
  }

  /** Answers a second, over the last seconds. */
  get fps() {
    const recent = this.#answeredAt.filter((at) => at > performance.now() - FPS_OVER_MS);
    return recent.length < 2 ? 0 : ((recent.length - 1) * 1000) / (recent.at(-1) - recent[0]);
  }

  /** Start tracking afresh from these boxes, with the next frame. */
  lookAt(boxes) {
    this.#rois = boxes;
  }

  /** The camera has a new frame. */
  offer(video) {
    this.frames += 1;
    if (!this.#hasRoom()) {
      this.dropped += 1;
      return;
    }
    const canvas = this.#spare.pop() ?? document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    const takenAt = performance.now();
    this.#encoding = true;
    canvas.toBlob(
      (blob) => {
        this.#encoding = false;
        this.#send(blob, canvas, takenAt);
      },
      "image/jpeg",
      QUALITY,
    );
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#socket?.close(1000);
  }

  #hasRoom() {
    if (this.#socket?.readyState !== WebSocket.OPEN || this.#encoding || this.#socket.bufferedAmount > 0) return false;
    if (this.#waits.size < UNDER_WAY) return true;
    return this.#waits.size < MOST_UNDER_WAY && performance.now() - this.#lastSentAt > RENEW_AFTER_MS;
  }

  #send(blob, canvas, takenAt) {
    if (!blob || this.#socket?.readyState !== WebSocket.OPEN) {
      this.dropped += 1;
      this.#spare.push(canvas);
      return;
    }
    const id = this.#next++;
    const description = { id, time_s: takenAt / 1000, rois: this.#rois };
    this.#rois = [];
    this.#waits.set(id, { canvas, takenAt });
    this.#lastSentAt = performance.now();
    this.#socket.send(JSON.stringify(description));
    this.#socket.send(blob);
  }

  #connect() {
    const query = new URLSearchParams({ variant: this.#variant, tracking: true, smoothing: "on", latest_only: true });
    const address = new URL(`/v1/hand-pose/stream?${query}`, location.href);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(address, streamProtocols());
    this.#socket = socket;
    this.#reason = null;
    socket.addEventListener("open", () => this.#on.connected());
    socket.addEventListener("message", (event) => this.#receive(JSON.parse(event.data)));
    socket.addEventListener("close", (event) => this.#lost(event));
  }

  #receive(answer) {
    if (answer.frame === undefined) {
      this.#reason = answer.problem ?? null; // the stream's last words
      return;
    }
    this.#failures = 0;
    const now = performance.now();
    let about = null;
    for (const [id, sent] of this.#waits) {
      if (id > answer.frame) break; // a Map keeps the order in which frames were sent
      this.#waits.delete(id);
      if (id === answer.frame) about = sent;
      else this.#spare.push(sent.canvas);
    }
    this.dropped += answer.skipped ?? 0;
    if (!about) return;
    if (answer.problem) {
      this.dropped += 1;
      this.#spare.push(about.canvas);
      this.#on.problem(answer.problem);
      return;
    }
    this.answered += 1;
    this.#answeredAt = [...this.#answeredAt.slice(-REMEMBERED), now];
    this.latencies = [...this.latencies.slice(1 - REMEMBERED), now - about.takenAt];
    this.#on.answer(answer, about.canvas, now - about.takenAt);
    this.#spare.push(about.canvas);
  }

  #lost({ code }) {
    for (const { canvas } of this.#waits.values()) this.#spare.push(canvas);
    this.dropped += this.#waits.size;
    this.#waits.clear();
    if (this.#closed) return;
    if (!LATER.has(code)) {
      this.#on.refused(this.#reason);
      return;
    }
    this.#on.lost(this.#reason);
    const pause = Math.max(PAUSES_MS[this.#failures] ?? PAUSES_MS.at(-1), this.#reason?.retry_after_ms ?? 0);
    this.#failures += 1;
    this.#timer = setTimeout(() => this.#connect(), pause);
  }
}
