#!/usr/bin/env bash
# Installs Debian's Prometheus for its promtool, which the tests of rules and alerts need, where this runs as root and apt
# is there. Where it is not they skip with a reason. Nothing is started.
set -euo pipefail

if command -v promtool >/dev/null; then
  echo "promtool is there"
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq || echo "the list of packages could not be renewed; trying with the old one"
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends prometheus \
    || echo "promtool could not be installed: the tests of rules and alerts will skip"
else
  echo "not root, or no apt-get: install promtool, or the tests of rules and alerts skip"
fi
