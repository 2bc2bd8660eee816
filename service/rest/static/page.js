// The page: what is looked at, with which model, and everything that happens because of it.

import { Refusal, Server, Unreachable, drawnPicture, estimate, hasKey, skeleton as fetchSkeleton, useKey } from "./api.js";
import { byId, capital, download, make, ms } from "./dom.js";
import { Camera, LiveStream, NoCamera, REMEMBERED } from "./live.js";
import { Sparkline, aligned, comparison, keypointTable, latencyBars } from "./panels.js";
import { snippets } from "./snippets.js";
import { View } from "./view.js";

const UNSURE = 0.3; // below this score, the page says that there may be no hand
const RETRIES = 3; // of a request that the service says may succeed later
const HICCUP_MS = 800; // a server that is ready again this soon was not away
const PANELS_EVERY_MS = 400; // numbers that change faster cannot be read
const SERVER_WORDS = {
  asking: "Asking the server",
  ready: "Server ready",
  starting: "Server not ready yet",
  gone: "Server does not answer",
};

const state = {
  skeleton: null, // the answer of GET /v1/skeleton
  picture: null, // {blob, name, address, size}: address is where the service has it, for samples
  boxes: [], // regions in pixels of the picture
  results: [], // [variant, {pose, roundTripMs}] of the picture shown
  views: new Map(), // variant -> View
  camera: null,
  streams: new Map(), // variant -> {stream, spark, values, ...} while the webcam runs
  highlit: null,
  language: "curl",
  grpcPort: null,
};
let afterKey = () => {}; // what waits for a key
let running = null; // aborts the request under way when something newer starts

const server = new Server((now, why) => {
  const pill = byId("server");
  pill.dataset.state = now;
  pill.textContent = SERVER_WORDS[now];
  pill.title = why ?? "";
});

// What is asked

const chosen = () => document.querySelector("input[name=model]:checked").value;
const variants = () => (chosen() === "both" ? ["lightweight", "standard"] : [chosen()]);

function say(text) {
  byId("say").textContent = text;
}

/** Tell what went wrong, in the page's most visible place. `again` adds a button. */
function tell(title, detail, { requestId = null, again = null } = {}) {
  const notice = byId("notice");
  notice.replaceChildren(make("p", {}, make("b", {}, title), " ", detail));
  if (requestId) notice.append(make("p", { class: "hint" }, `Request ${requestId} in the service’s log.`));
  if (again) {
    const button = make("button", { type: "button", class: "button small" }, "Try again");
    button.addEventListener("click", again);
    notice.append(button);
  }
  notice.hidden = false;
}

const hush = () => (byId("notice").hidden = true);

/** Problems come in half sentences: make a sentence of one. */
function sentence(text) {
  const begun = capital(text ?? "");
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

/** Show the field for a key, and what to do once there is one. */
function askForKey(then) {
  if (hasKey()) tell("This key is not valid.", "It may have been mistyped, revoked, or have expired.");
  else hush();
  afterKey = then;
  byId("access").hidden = false;
  byId("key").focus();
}

function tellOf(error, again = () => look()) {
  if (error instanceof Refusal && error.status === 401) {
    askForKey(again);
  } else if (error instanceof Refusal) {
    const again = error.status >= 500 || error.retryAfterMs !== null ? () => look() : null; // else it would fail again
    tell(sentence(error.title), sentence(error.message), { requestId: error.requestId, again });
  } else if (error instanceof NoCamera) {
    tell("No camera.", error.message);
  } else if (error instanceof Unreachable) {
    const size = state.picture ? ` The file has ${(state.picture.blob.size / 1e6).toFixed(1)} MB, perhaps too many.` : "";
    tell("The connection breaks off.", `The server is there, but this request never gets its answer.${size}`, { again: () => look() });
  } else {
    tell("Something went wrong on this page.", sentence(error.message));
    console.error(error);
  }
}

// A picture

async function showPicture(blob, name, address = null) {
  stopCamera();
  hush();
  state.picture = { blob, name, address, size: null };
  state.boxes = [];
  state.results = [];
  await look({ fresh: true });
}

/** Ask about the picture with the models and boxes that are chosen now, and show the answers. */
async function look({ fresh = false } = {}) {
  if (!state.picture) return;
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const { picture } = state;
  const [wanted, boxes] = [variants(), [...state.boxes]];
  try {
    state.skeleton ??= await patiently(() => fetchSkeleton(), signal);
    if (signal.aborted) return;
    await layOut(wanted, { fresh, signal });
    if (signal.aborted) return;
    hush();
    say("Looking for the hand…");
    byId("views").setAttribute("aria-busy", "true");
    const results = [];
    // One after the other: side by side, the two would wait for each other and neither time would mean anything.
    for (const variant of wanted) {
      const result = await patiently(() => estimate(picture.blob, { variant, boxes, signal }), signal);
      results.push([variant, result]);
      if (!state.views.get(variant).media) await showAsServiceDrawsIt(picture, variant, boxes, signal);
      if (signal.aborted) return;
      state.views.get(variant).show(result.pose);
    }
    state.results = results;
    showResults();
  } catch (error) {
    if (signal.aborted) return;
    state.results = [];
    for (const view of state.views.values()) view.show(null);
    if ([...state.views.values()].some((view) => !view.media)) clearViews();
    say("");
    showResults();
    tellOf(error);
  } finally {
    if (!signal.aborted) byId("views").removeAttribute("aria-busy");
  }
}

/** Ask again when the server is back, and when the service says that it may work later. */
async function patiently(ask, signal) {
  let brokenOff = 0; // in a row, with a server that says it is ready: then the request itself is what fails
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await ask();
    } catch (error) {
      if (signal.aborted) throw error;
      if (error instanceof Unreachable) {
        say("");
        const lostAt = performance.now();
        tell("The server does not answer.", "This page tries again by itself as soon as it is back.");
        await server.back(signal);
        brokenOff = performance.now() - lostAt < HICCUP_MS ? brokenOff + 1 : 0;
        if (brokenOff >= RETRIES) throw error;
        hush();
        say("The server is back. Looking for the hand…");
      } else if (error instanceof Refusal && error.retryAfterMs !== null && attempt <= RETRIES) {
        say(`${sentence(error.title)} Trying again…`);
        await new Promise((resolve) => setTimeout(resolve, error.retryAfterMs));
        if (signal.aborted) throw error;
      } else {
        throw error;
      }
    }
  }
}

/** One view for each model, with the picture in it. */
async function layOut(wanted, { fresh, signal }) {
  const stale = fresh || wanted.join() !== [...state.views.keys()].join();
  if (!stale) {
    for (const view of state.views.values()) view.compareWith(null);
    return;
  }
  const { picture } = state;
  const views = makeViews(wanted);
  for (const view of views.values()) {
    const image = await loaded(picture.blob, `The picture ${picture.name}`);
    if (signal.aborted) return;
    if (!image) break; // a kind that this browser does not know; the service may
    picture.size = { width: image.naturalWidth, height: image.naturalHeight };
    view.setMedia(image, picture.size);
  }
  install(views);
}

function makeViews(wanted) {
  const views = new Map();
  for (const variant of wanted) {
    const view = new View(state.skeleton, variant, { onBox: addBox, onHighlight: highlight });
    view.showsUncertainty = byId("uncertainty").checked;
    view.mayDrawByTouch = () => byId("draw").getAttribute("aria-pressed") === "true";
    view.caption.textContent = capital(variant);
    views.set(variant, view);
  }
  return views;
}

function install(views) {
  state.views = views;
  state.highlit = null;
  byId("views").replaceChildren(...[...views.values()].map((view) => view.element));
  byId("views").classList.toggle("two", views.size > 1);
  byId("views").hidden = byId("tools").hidden = false;
  byId("drop").hidden = true;
  byId("work").classList.remove("empty");
  byId("regions").hidden = false;
  showBoxes();
}

/** Back to the invitation to choose a picture. */
function clearViews() {
  state.views = new Map();
  byId("views").replaceChildren();
  byId("views").hidden = byId("tools").hidden = byId("regions").hidden = true;
  byId("drop").hidden = false;
  byId("work").classList.add("empty");
}

/** The blob as an image element, or null if the browser cannot read it. */
async function loaded(blob, alt) {
  const image = make("img", { alt });
  image.src = URL.createObjectURL(blob);
  try {
    await image.decode();
    return image;
  } catch {
    return null;
  } finally {
    setTimeout(() => URL.revokeObjectURL(image.src), 60_000);
  }
}

async function showAsServiceDrawsIt(picture, variant, boxes, signal) {
  const blob = await drawnPicture(picture.blob, { variant, boxes, signal, accept: "image/jpeg" });
  const image = await loaded(blob, `The picture ${picture.name}`);
  if (signal.aborted || !image) return;
  picture.size = { width: image.naturalWidth, height: image.naturalHeight };
  state.views.get(variant).setMedia(image, picture.size);
  say("This browser cannot show the picture, so the service has drawn it.");
}

// What was found

function showResults() {
  const { results } = state;
  const found = results.length > 0;
  for (const id of ["result", "latency", "points", "code"]) byId(id).hidden = !found;
  byId("apart").hidden = results.length < 2;
  byId("downloads").replaceChildren();
  if (!found) return;
  const every = results.flatMap(([, { pose }]) => pose.hands);
  if (!every.length) say("No hand found in this picture.");
  else say(every.some((hand) => hand.score < UNSURE) ? "The model is not sure that this is a hand." : "");
  byId("summary").replaceChildren(...results.map(([, { pose }]) => summary(pose)));
  byId("bars").replaceChildren(...latencyBars(results));
  if (results.length > 1) {
    const [one, other] = results.map(([, { pose }]) => pose);
    const theirs = aligned(one, other);
    const both = theirs.hands.some((hand) => hand);
    byId("apart").hidden = !both;
    if (both) byId("comparison").replaceChildren(...comparison(one, theirs, state.skeleton));
    state.views.get(results[0][0])?.compareWith(theirs);
    state.views.get(results[1][0])?.compareWith(aligned(other, one));
    const [[first, answer], [second]] = results;
    byId("table").replaceChildren(keypointTable([[first, answer], [second, { pose: theirs }]], state.skeleton, highlight));
  } else byId("table").replaceChildren(keypointTable(results, state.skeleton, highlight));
  for (const [variant, { pose }] of results) {
    const view = state.views.get(variant);
    view.caption.textContent = `${capital(variant)}, version ${pose.model.version}`;
    if (state.camera) continue;
    const label = results.length > 1 ? `Download ${variant} overlay` : "Download overlay";
    const button = make("button", { type: "button", class: "button small", "data-variant": variant }, label);
    button.addEventListener("click", () => saveOverlay(variant));
    byId("downloads").append(button);
  }
  showCode();
  byId("json").textContent = JSON.stringify(results.length > 1 ? answers() : results[0][1].pose, null, 2);
}

const answers = () => Object.fromEntries(state.results.map(([variant, { pose }]) => [variant, pose]));

function summary(pose) {
  const { model, hands, timings_ms: timings } = pose;
  const scores = hands.map((hand) => hand.score.toFixed(2)).join(", ");
  return make(
    "dl",
    { class: "summary", "data-model": model.variant },
    ...[
      ["Model", `${capital(model.variant)} version ${model.version}${model.label ? `, ${model.label}` : ""}`],
      ["Hands", hands.length ? hands.map(({ handedness }) => handedness?.label ?? "one").join(", ") : "none"],
      [hands.length > 1 ? "Scores" : "Score", scores || "–"],
      ["Service time", ms(timings.total)],
      ["Picture", `${pose.image.width} × ${pose.image.height}`],
    ].map(([term, value]) => make("div", {}, make("dt", {}, term), make("dd", {}, value))),
  );
}

function showCode() {
  const { picture } = state;
  if (!picture || state.camera) {
    byId("code").classList.add("json-only");
    return;
  }
  byId("code").classList.remove("json-only");
  const port = state.grpcPort ?? Number(location.port || (location.protocol === "https:" ? 443 : 80)) + 1;
  const texts = snippets({
    picture,
    variants: variants(),
    boxes: state.boxes,
    origin: location.origin,
    grpcAddress: `${location.hostname}:${port}`,
    withKey: hasKey(),
  });
  byId("snippet").textContent = texts[state.language];
  byId("snippet").setAttribute("aria-labelledby", `tab-${state.language}`);
  byId("snippet-hint").textContent = [
    picture.address ? "" : `Run it where ${picture.name} is.`,
    state.language === "curl" ? "" : "Needs Python with this project installed: pip install '.[client]' in its folder.",
  ].join(" ").trim();
}

function highlight(which) {
  if (which?.hand === state.highlit?.hand && which?.id === state.highlit?.id) return;
  state.highlit = which;
  for (const view of state.views.values()) view.highlight(which);
  for (const row of document.querySelectorAll("#table tr[data-id]")) {
    row.classList.toggle("lit", Number(row.dataset.id) === which?.id && Number(row.dataset.hand) === which?.hand);
  }
  const tip = which && [...state.views.values()][0]?.tip;
  byId("spoken").textContent = tip ? [...tip.children].map((part) => part.textContent).join(", ") : "";
}

async function saveOverlay(variant) {
  try {
    const blob = await drawnPicture(state.picture.blob, { variant, boxes: state.boxes });
    download(blob, `${stem(state.picture.name)}-${variant}.png`);
  } catch (error) {
    if (error instanceof Unreachable) tell("The server does not answer.", "Try again when it is back.");
    else tellOf(error);
  }
}

const stem = (name) => name.replace(/\.[^.]*$/, "");

// Boxes

function addBox(box) {
  if (state.camera) {
    // Tracking starts afresh from it; what follows is the tracker's business.
    for (const { stream } of state.streams.values()) stream.lookAt([box]);
    return;
  }
  state.boxes.push(box);
  showBoxes();
  look();
}

function showBoxes() {
  for (const view of state.views.values()) view.setBoxes(state.camera ? [] : state.boxes);
  byId("clear-boxes").hidden = state.boxes.length === 0;
  byId("boxes").replaceChildren(...state.boxes.map(boxEditor));
}

/** A box as four numbers: the way to draw one without a pointer. */
function boxEditor(box, index) {
  const name = `Box ${index + 1}`;
  const { width, height } = state.picture.size ?? { width: 1e5, height: 1e5 };
  const fields = [["x", 0, width - 1], ["y", 0, height - 1], ["width", 1, width], ["height", 1, height]].map(([key, min, max]) => {
    const input = make("input", { type: "number", min, max, step: 1, value: box[key], "aria-label": `${name}: ${key} in pixels` });
    input.addEventListener("change", () => {
      const value = Math.round(Number(input.value));
      state.boxes[index][key] = Math.min(Math.max(Number.isFinite(value) ? value : min, min), max);
      input.value = state.boxes[index][key];
      for (const view of state.views.values()) view.setBoxes(state.boxes);
      look();
    });
    return make("label", {}, make("span", { "aria-hidden": "true" }, key), input);
  });
  const remove = make("button", { type: "button", class: "button small", "aria-label": `Remove box ${index + 1}` }, "Remove");
  remove.addEventListener("click", () => {
    state.boxes.splice(index, 1);
    showBoxes();
    byId("add-box").focus();
    look();
  });
  return make("div", { class: "box", role: "group", "aria-label": name }, make("b", {}, name), ...fields, remove);
}

byId("add-box").addEventListener("click", () => {
  const { width, height } = state.picture?.size ?? state.camera?.size ?? { width: 100, height: 100 };
  const middle = (length) => [Math.round(length / 4), Math.max(Math.round(length / 2), 1)];
  const [[x, boxWidth], [y, boxHeight]] = [middle(width), middle(height)];
  addBox({ x, y, width: boxWidth, height: boxHeight });
  byId("boxes").querySelector(".box:last-child input")?.focus();
});
byId("clear-boxes").addEventListener("click", () => {
  state.boxes = [];
  showBoxes();
  byId("add-box").focus();
  look();
});

// The webcam

async function startCamera() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  hush();
  say("Starting the camera…");
  byId("webcam").disabled = true;
  try {
    state.skeleton ??= await patiently(() => fetchSkeleton(), signal);
    state.camera = await Camera.open();
  } catch (error) {
    say("");
    if (!signal.aborted) tellOf(error, startCamera);
    return;
  } finally {
    byId("webcam").disabled = false;
  }
  if (signal.aborted) {
    stopCamera(); // a picture came first
    return;
  }
  const { camera } = state;
  byId("mirror").checked = camera.facesUser;
  camera.onFrame = (video) => {
    for (const { stream } of state.streams.values()) stream.offer(video);
  };
  camera.onEnd = () => {
    stopCamera();
    tell("The camera has gone.", "Connect it again, or choose a picture.");
  };
  state.picture = null;
  state.boxes = [];
  showCameraRuns(true);
  startStreams();
  say("");
}

function startStreams() {
  endStreams();
  const { camera } = state;
  const views = makeViews(variants());
  byId("gauges").replaceChildren();
  for (const [variant, view] of views) {
    const canvas = make("canvas", { role: "img", "aria-label": "The camera’s picture" });
    [canvas.width, canvas.height] = [camera.size.width, camera.size.height];
    view.setMedia(canvas, camera.size, { mirrored: byId("mirror").checked });
    const gauges = makeGauges(variant);
    byId("gauges").append(gauges.element);
    const entry = { gauges, last: null, panelsAt: 0 };
    entry.stream = new LiveStream(variant, {
      connected: () => {
        hush();
        server.ask();
      },
      answer: (answer, frame) => showFrame(variant, answer, frame),
      problem: (problem) => tell(sentence(problem.title), sentence(problem.detail)),
      refused: (problem) => {
        stopCamera();
        if (problem?.status === 401) askForKey(startCamera);
        else tell(sentence(problem?.title ?? "The stream ended"), sentence(problem?.detail ?? "The server closed it"));
      },
      lost: (problem) => {
        tell("The server ended the stream.", `${problem ? `${sentence(problem.detail)} ` : ""}This page connects again by itself.`);
        server.ask();
      },
    });
    state.streams.set(variant, entry);
  }
  state.results = [];
  install(views);
  showResults();
}

function showFrame(variant, answer, frame) {
  const view = state.views.get(variant);
  const entry = state.streams.get(variant);
  if (!view || !entry) return;
  const canvas = view.media;
  if (canvas.width !== frame.width || canvas.height !== frame.height) {
    [canvas.width, canvas.height] = [frame.width, frame.height];
  }
  canvas.getContext("2d").drawImage(frame, 0, 0);
  view.show(answer.result, { tracked: answer.tracked });
  canvas.dataset.frame = answer.frame;
  entry.last = answer;
  hush();
  const now = performance.now();
  if (now - entry.panelsAt < PANELS_EVERY_MS) return;
  entry.panelsAt = now;
  showGauges(entry);
  const all = [...state.streams];
  if (all.every(([, each]) => each.last)) {
    state.results = all.map(([each, { last, stream }]) => [each, { pose: last.result, roundTripMs: stream.latencies.at(-1) }]);
    showResults();
    // Their frames differ, so the distance between them would say nothing.
    byId("apart").hidden = true;
    for (const each of state.views.values()) each.compareWith(null);
  }
}

function makeGauges(variant) {
  const spark = new Sparkline(`Latency of the last ${REMEMBERED} frames`, REMEMBERED);
  const gauge = (name) => make("span", { "data-gauge": name }, "–");
  const rows = [
    ["Frames a second", gauge("fps")],
    ["Latency", gauge("latency"), spark.element],
    ["Dropped frames", gauge("dropped")],
    ["Hand", gauge("hand")],
  ].map(([term, ...values]) => make("div", {}, make("dt", {}, term), ...values.map((value) => make("dd", {}, value))));
  const element = make("div", { class: "gauges", "data-model": variant }, make("h3", {}, capital(variant)), make("dl", {}, ...rows));
  return { element, spark };
}

function showGauges({ gauges, stream, last }) {
  const set = (name, text) => (gauges.element.querySelector(`[data-gauge=${name}]`).textContent = text);
  const sorted = [...stream.latencies].sort((a, b) => a - b);
  set("fps", stream.fps.toFixed(1));
  set("latency", `${ms(sorted[Math.floor(sorted.length / 2)] ?? 0)} (median)`);
  set("dropped", `${stream.dropped} of ${stream.frames}`);
  set("hand", last.tracked ? `followed${last.track_ids?.[0] ? `, track ${last.track_ids[0]}` : ""}` : "searched in the whole picture");
  gauges.spark.update(stream.latencies);
}

function endStreams() {
  for (const { stream } of state.streams.values()) stream.close();
  state.streams.clear();
}

function stopCamera() {
  if (!state.camera) return;
  endStreams();
  state.camera.stop();
  state.camera = null;
  showCameraRuns(false);
  state.results = [];
  clearViews();
  showResults();
}

function showCameraRuns(runs) {
  byId("webcam").setAttribute("aria-pressed", String(runs));
  byId("webcam").textContent = runs ? "Stop the webcam" : "Use the webcam";
  byId("live").hidden = byId("keep").hidden = byId("mirror-choice").hidden = !runs;
  document.body.classList.toggle("live", runs);
}

byId("access").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
  byId("access").hidden = true;
  hush();
  afterKey();
});
byId("webcam").addEventListener("click", () => {
  if (!state.camera) {
    startCamera();
    return;
  }
  stopCamera();
  hush();
});
byId("mirror").addEventListener("change", (event) => {
  for (const view of state.views.values()) view.stage.classList.toggle("mirrored", event.target.checked);
});
byId("keep").addEventListener("click", () => {
  const canvas = [...state.views.values()][0]?.media;
  canvas?.toBlob((blob) => showPicture(blob, "webcam.png"), "image/png");
});

// Choosing, dropping, pasting

function given(files) {
  const [file] = files;
  if (file) showPicture(file, file.name || `pasted.${file.type.split("/")[1] ?? "png"}`);
}

byId("file").addEventListener("change", (event) => {
  given(event.target.files);
  event.target.value = ""; // the same file again is a change, too
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  given(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) given(event.clipboardData.files);
  else if (!event.target.closest?.("input")) tell("There is no picture to paste.", "Copy a picture first, not its address.");
});
for (const button of document.querySelectorAll(".sample")) {
  button.addEventListener("click", async () => {
    const { name } = button.dataset;
    const address = `/static/${name}`;
    try {
      const answer = await fetch(address);
      await showPicture(await answer.blob(), name, address);
    } catch {
      server.ask();
      tell("The server does not answer.", "Try the sample again when it is back.");
    }
  });
}

byId("models").addEventListener("change", () => (state.camera ? startStreams() : look()));
byId("uncertainty").addEventListener("change", (event) => {
  for (const view of state.views.values()) view.setUncertainty(event.target.checked);
});
byId("draw").addEventListener("click", ({ currentTarget: button }) => {
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(on));
  byId("views").classList.toggle("drawing", on);
});

// Code and JSON

const tabs = [...byId("tabs").children];
function choose(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
  }
  state.language = tab.id.replace("tab-", "");
  showCode();
}
for (const tab of tabs) tab.addEventListener("click", () => choose(tab));
byId("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
  choose(next);
  next.focus();
});
byId("copy").addEventListener("click", async ({ currentTarget: button }) => {
  try {
    await navigator.clipboard.writeText(byId("snippet").textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("snippet")); // pages from elsewhere may not write the clipboard
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
});
byId("save-json").addEventListener("click", () => {
  const blob = new Blob([byId("json").textContent], { type: "application/json" });
  download(blob, `${stem(state.picture?.name ?? "webcam")}.json`);
});

fetch("/page.json").then(async (answer) => (state.grpcPort = (await answer.json()).grpc_port)).catch(() => server.ask());
