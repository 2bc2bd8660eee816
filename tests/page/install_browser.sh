#!/usr/bin/env bash
# Installs what the page's tests need and Python's packages cannot bring: Debian's Chromium with its driver, where this
# runs as root and apt is there, and axe-core from npm. Leaves out, and says so, what cannot be installed here; the
# tests that need it skip with a reason.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
  echo "chromium and chromedriver are there"
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq || echo "the list of packages could not be renewed; trying with the old one"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core \
    || echo "chromium could not be installed: the tests in a browser will skip"
else
  echo "not root, or no apt-get: install chromium and chromedriver, or the tests in a browser skip"
fi

if [ -f node_modules/axe-core/axe.min.js ]; then
  echo "axe-core is there"
elif command -v npm >/dev/null; then
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error \
    || echo "axe-core could not be installed: the accessibility tests will skip"
else
  echo "no npm: the accessibility tests skip"
fi
