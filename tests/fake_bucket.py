"""Stands for `gcloud storage` or `aws s3`, by the name under which it is called. Buckets are folders in $BUCKETS.

It knows only the options that cloud/vm_startup.sh uses, with what their manuals say that they do.
"""

import argparse
import fnmatch
import os
import pathlib
import re
import shutil
import sys

gcloud = pathlib.Path(sys.argv[0]).name == "gcloud"
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("service", choices=["storage" if gcloud else "s3"])
commands = parser.add_subparsers(dest="command", required=True)
copy = commands.add_parser("cp", allow_abbrev=False)
sync = commands.add_parser("rsync" if gcloud else "sync", allow_abbrev=False)
if gcloud:
    sync.add_argument("--recursive", action="store_true", required=True)
sync.add_argument(
    "--delete-unmatched-destination-objects" if gcloud else "--delete", dest="delete", action="store_true"
)
sync.add_argument("--exclude", default="")
for command in (copy, sync):
    command.add_argument("source")
    command.add_argument("target")
options = parser.parse_args()
scheme = "gs://" if gcloud else "s3://"
source, target = (
    pathlib.Path(url.replace(scheme, os.environ["BUCKETS"] + "/")) for url in (options.source, options.target)
)
if not source.exists():
    sys.exit(f"{options.source} matched no objects")
if options.command == "cp":
    shutil.copy2(source, target)
    sys.exit()


def files_in(folder: pathlib.Path) -> set[str]:
    """The files that are not excluded: --exclude is a regular expression for gcloud, and a pattern for aws."""
    excluded = re.compile(options.exclude if gcloud else fnmatch.translate(options.exclude))
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not options.exclude or not excluded.match(name)}


for number, name in enumerate(sorted(files_in(source))):
    if number and options.source == os.environ.get("CUT_OFF"):
        sys.exit("the connection was lost")
    (target / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source / name, target / name)
if options.delete:
    for name in files_in(target) - files_in(source):
        (target / name).unlink()
