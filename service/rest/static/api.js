// Talks to the service. Knows nothing of the page.

/** The service said no: an RFC 9457 problem. */
export class Refusal extends Error {
  constructor(problem) {
    super(problem.detail);
    this.title = problem.title;
    this.status = problem.status;
    this.code = problem.code;
    this.requestId = problem.request_id;
    this.retryAfterMs = problem.retry_after_ms ?? null;
  }
}

/** Nobody answered, or something between here and the service did. */
export class Unreachable extends Error {}

let key = ""; // in memory only: nothing that outlives the page ever holds it

/** Show this key with every request from now on. */
export function useKey(given) {
  key = given;
}

/** Whether there is a key to show. */
export const hasKey = () => key !== "";

/** What a WebSocket names, for a browser cannot set its headers: the protocol, and the key as another. */
export const streamProtocols = () => (key ? ["handpose.v1", `handpose.key.${key}`] : ["handpose.v1"]);

const withKey = (headers) => (key ? { ...headers, Authorization: `Bearer ${key}` } : headers);

/**
 * The hands of one image: POST /v1/hand-pose.
 * @param image a Blob that holds an image file
 * @param boxes regions {x, y, width, height} in pixels of the upright image; none: the whole image
 * @returns {pose, roundTripMs}
 */
export async function estimate(image, { variant, boxes = [], signal }) {
  const begun = performance.now();
  const answer = await post(image, { variant, boxes, signal, accept: "application/json" });
  const pose = await answer.json();
  return { pose, roundTripMs: performance.now() - begun };
}

/** The upright image with the skeleton drawn on it, as the service draws it: a Blob. */
export async function drawnPicture(image, { variant, boxes = [], signal, accept = "image/png" }) {
  return (await post(image, { variant, boxes, signal, accept })).blob();
}

/** Which points make a hand, and which of them are joined: GET /v1/skeleton. */
export async function skeleton() {
  return (await asked(fetch("/v1/skeleton", { headers: withKey({}) }))).json();
}

/** The query that asks for regions: "?roi=x,y,width,height&roi=…", or nothing. */
export function roiQuery(boxes) {
  return boxes.length ? "?" + boxes.map((box) => `roi=${[box.x, box.y, box.width, box.height].join(",")}`).join("&") : "";
}

async function post(image, { variant, boxes, signal, accept }) {
  const headers = { "Content-Type": "application/octet-stream", "X-Model-Variant": variant, Accept: accept };
  return asked(fetch(`/v1/hand-pose${roiQuery(boxes)}`, { method: "POST", headers: withKey(headers), body: image, signal }));
}

async function asked(answering) {
  let answer;
  try {
    answer = await answering;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable("the server does not answer", { cause: error });
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => null);
  if (problem?.detail === undefined) throw new Unreachable(`something in between answered with status ${answer.status}`);
  throw new Refusal(problem);
}

/** Whether the service would answer now. Asks /readyz: seldom while all is well, every second while it is not. */
export class Server {
  #state = "asking"; // then "ready", "starting" or "gone"
  #timer = null;
  #waiting = [];
  #changed;

  /** @param changed is told of every new state, with the service's own words for it where there are some */
  constructor(changed) {
    this.#changed = changed;
    document.addEventListener("visibilitychange", () => document.hidden || this.ask());
    this.ask();
  }

  get state() {
    return this.#state;
  }

  /** Find out now, because something hinted that the state is another. */
  async ask() {
    clearTimeout(this.#timer);
    try {
      const answer = await fetch("/readyz", { signal: AbortSignal.timeout(5000), cache: "no-store" });
      if (answer.ok) this.#is("ready");
      else this.#is("starting", (await answer.json().catch(() => null))?.detail);
    } catch {
      this.#is("gone");
    }
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.ask(), this.#state === "ready" ? 10_000 : 1000);
  }

  /** Resolves once it is ready; rejects when the signal aborts. */
  back(signal) {
    this.ask();
    return new Promise((resolve, reject) => {
      this.#waiting.push(resolve);
      signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
  }

  #is(state, detail = null) {
    if (state === "ready") this.#waiting.splice(0).forEach((resolve) => resolve());
    if (state === this.#state) return;
    this.#state = state;
    this.#changed(state, detail);
  }
}
