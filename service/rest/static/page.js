// Sends a picture to the service and draws what comes back. The service says how a hand is drawn: GET /v1/skeleton.

const byId = (id) => document.getElementById(id);
const form = byId("form");
const drop = byId("drop");
const message = byId("message");
let picture = null; // the file or blob shown last
let running = null; // aborts the request under way when a newer one starts

const skeleton = fetch("/v1/skeleton").then((answer) => answer.json());

function say(text, wrong = false) {
  message.textContent = text;
  message.classList.toggle("wrong", wrong);
}

async function ask(image, variant, signal) {
  const answer = await fetch("/v1/hand-pose", {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream", "X-Model-Variant": variant },
    body: image,
    signal,
  });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail ?? answer.statusText);
  return body;
}

async function show(image) {
  picture = image;
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  say("Looking for the hand…");
  try {
    const variant = new FormData(form).get("variant");
    const [pose, bitmap, { keypoints, edges }] = await Promise.all([
      ask(image, variant, signal),
      createImageBitmap(image, { imageOrientation: "from-image" }).catch(() => null),
      skeleton,
    ]);
    if (signal.aborted) return;
    draw(bitmap, pose, keypoints, edges);
    const { model, timings_ms: timings, hands } = pose;
    byId("caption").textContent =
      `${model.variant} version ${model.version} · score ${hands[0].score.toFixed(2)} · ` +
      `${timings.total.toFixed(0)} ms, of which ${timings.inference.toFixed(0)} ms in the model`;
    byId("json").textContent = JSON.stringify(pose, null, 2);
    byId("result").hidden = byId("details").hidden = false;
    say(bitmap ? "" : "This browser cannot show the picture; the keypoints are right all the same.");
  } catch (error) {
    if (signal.aborted) return;
    byId("result").hidden = byId("details").hidden = true;
    say(error.message, true);
  }
}

function draw(bitmap, pose, keypoints, edges) {
  const canvas = byId("canvas");
  const { width, height } = pose.image;
  const shrink = Math.min(1, 1600 / Math.max(width, height));
  canvas.width = Math.round(width * shrink);
  canvas.height = Math.round(height * shrink);
  const context = canvas.getContext("2d");
  if (bitmap) context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  context.lineCap = "round";
  for (const hand of pose.hands) {
    const points = hand.keypoints.map(({ x, y, score }) => ({ x: x * shrink, y: y * shrink, score }));
    const extent = Math.max(
      ...["x", "y"].map((axis) => Math.max(...points.map((p) => p[axis])) - Math.min(...points.map((p) => p[axis]))),
    );
    const radius = Math.max(3, 0.016 * extent);
    for (const outline of [true, false]) {
      for (const [from, to] of edges) {
        context.globalAlpha = 0.25 + 0.75 * points[to].score;
        context.strokeStyle = outline ? "#141414" : keypoints[to].colour;
        context.lineWidth = outline ? radius + 3 : radius;
        context.beginPath();
        context.moveTo(points[from].x, points[from].y);
        context.lineTo(points[to].x, points[to].y);
        context.stroke();
      }
      points.forEach(({ x, y, score }, index) => {
        context.globalAlpha = 0.25 + 0.75 * score;
        context.fillStyle = outline ? "#141414" : keypoints[index].colour;
        context.beginPath();
        context.arc(x, y, outline ? radius + 1.5 : radius, 0, 2 * Math.PI);
        context.fill();
      });
    }
  }
  context.globalAlpha = 1;
}

form.addEventListener("change", (event) => {
  if (event.target.id === "file" && event.target.files.length) show(event.target.files[0]);
  else if (event.target.name === "variant" && picture) show(picture);
});
form.addEventListener("submit", (event) => event.preventDefault());
drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) show(event.dataTransfer.files[0]);
});

const example = byId("example");
fetch("/static/example.jpg", { method: "GET" }).then(async (answer) => {
  if (!answer.ok) return;
  const blob = await answer.blob();
  example.hidden = false;
  example.addEventListener("click", () => show(blob));
});
