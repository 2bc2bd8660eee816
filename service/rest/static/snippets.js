// The request that the page just made, as code that works when it is pasted.

import { roiQuery } from "./api.js";

/**
 * @param picture {name, address}: address is where the service offers the picture, for samples
 * @param variants the models that were asked
 * @param boxes regions, in pixels of the image
 * @param origin the service's address, such as "http://127.0.0.1:8000"
 * @param grpcAddress "host:port"
 */
export function snippets({ picture, variants, boxes, origin, grpcAddress, withKey }) {
  return {
    curl: curl(picture, variants, boxes, origin, withKey),
    python: python(picture, variants, boxes, origin, withKey),
    grpc: grpc(picture, variants, boxes, grpcAddress, origin, withKey),
  };
}

function curl(picture, variants, boxes, origin, withKey) {
  const source = picture.address ? `curl --silent ${shell(origin + picture.address)} |\n` : "";
  const file = picture.address ? "@-" : shell(`@${picture.name}`);
  const address = `${origin}/v1/hand-pose${roiQuery(boxes)}`;
  return variants
    .map((variant) =>
      [
        `${source}curl --data-binary ${file}`,
        "-H 'Content-Type: application/octet-stream'",
        `-H 'X-Model-Variant: ${variant}'`,
        ...(withKey ? ['-H "Authorization: Bearer $HANDPOSE_API_KEY"'] : []),
        shell(address),
      ].join(" \\\n  "),
    )
    .join("\n\n");
}

function python(picture, variants, boxes, origin, withKey) {
  const box = boxes.length ? "Box, " : "";
  const rois = boxes.length ? `, rois=[${boxes.map((b) => `Box(${numbers(b)})`).join(", ")}]` : "";
  return [
    ...(withKey ? ["import os"] : []),
    ...(picture.address ? ["from urllib.request import urlopen"] : []),
    ...(withKey || picture.address ? [""] : []),
    `from service.client import ${box}HandPoseClient`,
    "",
    `image = ${source(picture, origin)}`,
    `with HandPoseClient(${quoted(origin)}${withKey ? ', api_key=os.environ["HANDPOSE_API_KEY"]' : ""}) as client:`,
    ...each(variants, (indent, variant) => [
      `${indent}estimate = client.estimate(image${rois}, variant=${variant})`,
      `${indent}print(estimate.model.name, estimate.timings_ms.total, "ms")`,
      `${indent}for hand in estimate.hands:`,
      `${indent}    for point in hand.keypoints:`,
      `${indent}        print(point.name, point.x, point.y, point.score)`,
    ]),
  ].join("\n");
}

function grpc(picture, variants, boxes, address, origin, withKey) {
  const rois = boxes
    .map((b) => `pb.Box(x=${b.x}, y=${b.y}, width=${b.width}, height=${b.height})`)
    .join(", ");
  return [
    ...(withKey ? ["import os"] : []),
    ...(picture.address ? ["from urllib.request import urlopen"] : []),
    ...(withKey || picture.address ? [""] : []),
    "import grpc",
    "",
    "from service.rpc.handpose.v1 import hand_pose_pb2 as pb",
    "from service.rpc.handpose.v1.hand_pose_pb2_grpc import HandPoseServiceStub",
    "",
    `image = ${source(picture, origin)}`,
    origin.startsWith("https:")
      ? `with grpc.secure_channel(${quoted(address)}, grpc.ssl_channel_credentials()) as channel:`
      : `with grpc.insecure_channel(${quoted(address)}) as channel:`,
    "    service = HandPoseServiceStub(channel)",
    `    request = pb.EstimateRequest(image=image${rois ? `, rois=[${rois}]` : ""})`,
    ...each(variants, (indent, variant) => [
      `${indent}answer = service.Estimate(request, metadata=[("x-model-variant", ${variant})${withKey ? ', ("authorization", "Bearer " + os.environ["HANDPOSE_API_KEY"])' : ""}], timeout=10)`,
      `${indent}print(answer)`,
    ]),
  ].join("\n");
}

function each(variants, lines) {
  if (variants.length === 1) return lines("    ", quoted(variants[0]));
  return [`    for variant in (${variants.map(quoted).join(", ")}):`, ...lines("        ", "variant")];
}

function source(picture, origin) {
  return picture.address
    ? `urlopen(${quoted(origin + picture.address)}).read()`
    : `open(${quoted(picture.name)}, "rb").read()`;
}

const numbers = (box) => [box.x, box.y, box.width, box.height].join(", ");

/** A string literal: JSON's escapes are Python's, too. */
const quoted = (text) => JSON.stringify(text);

/** One word of a shell's command line. */
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
