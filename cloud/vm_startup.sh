#!/usr/bin/env bash
# Trains on a rented machine. It fetches the data and the run so far from a bucket, trains, and uploads the run every few
# minutes and at the end. On SIGTERM, as when a Spot machine is taken away, the trainer saves and exits, the run is
# uploaded, and the next start resumes it. retinanet.service runs this script at each boot; docs/CLOUD.md has the rest.
#
# Environment:
#   DATA_URL    folder of the shards and labels.txt: gs://BUCKET/..., s3://BUCKET/..., or a folder of a shared disk
#   RUN_URL     folder of the run, likewise; it holds run.flags, the flags of trainer.task but for --model_dir
#   WORK_DIR    folder on the machine's disk; what comes from buckets lies in its folders data and run;
#               default: /var/lib/retinanet
#   UPLOAD_S    seconds between two uploads; default: 300
#   PYTHON      default: the .venv of this checkout
set -euo pipefail
: "${DATA_URL:?}" "${RUN_URL:?}" "${WORK_DIR:=/var/lib/retinanet}" "${UPLOAD_S:=300}" "${PYTHON:=.venv/bin/python}"
cd "$(dirname "$0")/.."

say() { echo "vm_startup: $*" >&2; }

# copy_file URL FOLDER
copy_file() {
  case "$1" in
    gs://*) gcloud storage cp "$1" "$2/" ;;
    s3://*) aws s3 cp "$1" "$2/" ;;
  esac
}

# copy_folder FROM TO
copy_folder() {
  case "$1" in
    gs://*) gcloud storage rsync --recursive "$1" "$2" ;;
    s3://*) aws s3 sync "$1" "$2" ;;
  esac
}

# Makes RUN_URL like the run, except for run.flags, which is edited there. Files that are gone, such as old checkpoints,
# are deleted there too.
upload() {
  case "$RUN_URL" in
    gs://*) gcloud storage rsync --recursive --delete-unmatched-destination-objects --exclude='run\.flags$' "$run" "$RUN_URL" ;;
    s3://*) aws s3 sync --delete --exclude=run.flags "$run" "$RUN_URL" ;;
  esac
}

# The folder of this machine that stands for a URL.
folder_of() {
  case "$1" in
    gs://* | s3://*) echo "$WORK_DIR/$2" ;;
    *) echo "$1" ;;
  esac
}

data=$(folder_of "$DATA_URL" data)
run=$(folder_of "$RUN_URL" run)
export CUDA_CACHE_PATH=$WORK_DIR/cuda-cache CUDA_CACHE_MAXSIZE=4294967296
mkdir -p "$CUDA_CACHE_PATH" "$data"

say "fetching the data"
copy_folder "$DATA_URL" "$data"
# A run that this disk already holds is newer than the bucket's. A download that was cut short is not taken for a run:
# training would begin again, and the upload would delete the checkpoints in the bucket.
if [ ! -d "$run" ]; then
  say "fetching the run"
  mkdir -p "$run.partial"
  copy_folder "$RUN_URL" "$run.partial"
  mv "$run.partial" "$run"
fi
copy_file "$RUN_URL/run.flags" "$run"

set -m # each background job is a process group, so that it can be ended with its children
"$PYTHON" -m trainer.task --flagfile="$run/run.flags" --model_dir="$run" &
trainer=$!
trap 'say "stopping"; kill -TERM "$trainer" 2>/dev/null || true' TERM INT
(while sleep "$UPLOAD_S"; do upload || say "the upload failed; the next one is in $UPLOAD_S s"; done) &
uploads=$!

status=0
wait "$trainer" || status=$?
while kill -0 "$trainer" 2>/dev/null; do # a signal ends wait before the trainer has ended
  status=0
  wait "$trainer" || status=$?
done
kill -- -"$uploads" 2>/dev/null || true
say "the trainer ended with exit code $status; uploading the run"
upload
exit "$status"
