#!/usr/bin/env bash
# Starts a stage on Dataflow through its Flex Template.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: deploy/dataflow/launch.sh STAGE JOB TEMPLATES IMAGE [NAME=VALUE ...] -- GCLOUD_FLAG ...

  STAGE         prepare, score or fuse
  JOB           name of the job
  TEMPLATES     folder of the templates, as in gs://BUCKET/templates/0.1.0
  IMAGE         image of the workers
  NAME=VALUE    a flag of the stage; a list as a shell takes it, models='a b', a truth
                value as overwrite=true
  GCLOUD_FLAG   of gcloud dataflow flex-template run; --project, --region and
                --staging-location must be among them

deploy/dataflow/STAGE.json lists the flags, and what they are for.
TEXT
}

fail() {
  printf 'error: %s\n\n' "$1" >&2
  usage >&2
  exit 2
}

(($# >= 4)) || fail "STAGE, JOB, TEMPLATES and IMAGE must be given"
stage=$1 job=$2 templates=${3%/} image=$4
shift 4
[[ $stage =~ ^(prepare|score|fuse)$ ]] || fail "STAGE must be prepare, score or fuse, got '$stage'"
[[ $templates == gs://* ]] || fail "TEMPLATES must be a gs:// folder, got '$templates'"

# gcloud parts a value at its commas unless it begins with another mark, which must not
# occur in it.
parameters=("--parameters=stage=$stage" "--parameters=^~~^sdk_container_image=$image")
while (($#)) && [[ $1 != -- ]]; do
  [[ $1 =~ ^[a-z_]+=.+ ]] || fail "a flag of the stage must be NAME=VALUE, got '$1'"
  [[ $1 != *"~~"* ]] || fail "a value must not hold '~~', got '$1'"
  parameters+=("--parameters=^~~^$1")
  shift
done
(($#)) && shift
for flag in --project --region --staging-location; do
  [[ " $*" == *" $flag="* ]] || fail "$flag=... must stand behind --"
done

exec gcloud dataflow flex-template run "$job" \
  --template-file-gcs-location="$templates/$stage.json" "${parameters[@]}" "$@"
