#!/usr/bin/env bash
# Builds and pushes the images, and publishes a Flex Template for each stage.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: deploy/dataflow/build.sh REPOSITORY TAG TEMPLATES

  REPOSITORY  where images go, as in europe-west4-docker.pkg.dev/PROJECT/fusebeam
  TAG         of the images, as in 0.1.0
  TEMPLATES   folder that gets prepare.json, score.json and fuse.json, as in
              gs://BUCKET/templates/0.1.0

Needs docker, logged in to the repository, and gcloud, logged in to the project.
TEXT
}

if (($# != 3)) || [[ $3 != gs://* ]]; then
  usage >&2
  exit 2
fi
repository=$1 tag=$2 templates=${3%/}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

for kind in cpu cuda; do
  docker build --file "deploy/dataflow/$kind.Dockerfile" --tag "$repository/$kind:$tag" .
  docker push "$repository/$kind:$tag"
done
docker build --file deploy/dataflow/template.Dockerfile \
  --build-arg "WORKER=$repository/cpu:$tag" --tag "$repository/template:$tag" .
docker push "$repository/template:$tag"

for stage in prepare score fuse; do
  gcloud dataflow flex-template build "$templates/$stage.json" \
    --image="$repository/template:$tag" --sdk-language=PYTHON \
    --metadata-file="deploy/dataflow/$stage.json"
done
