#!/usr/bin/env bash
# From the Docker image to one file for a cluster:   bash container/build_apptainer.sh [stable-audio-tools.sif]
# With IMAGE=registry/name:tag the image is pulled instead of taken from the Docker of this machine.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-stable-audio-tools.sif}
engine=$(command -v apptainer || command -v singularity) || {
  echo "error: neither apptainer nor singularity is installed" >&2
  exit 2
}
if [[ -n ${IMAGE:-} ]]; then
  exec "$engine" build "$target" "docker://$IMAGE"
fi
docker build -t stable-audio-tools -f container/Dockerfile .
exec "$engine" build "$target" container/apptainer.def
