#!/usr/bin/env bash
# Gradescope runs this once, as root, when it builds the image: the grader's packages, and a user for the submissions.
set -euo pipefail
cd /autograder/source

if ! python3 -c 'import venv, ensurepip' 2> /dev/null || ! command -v setpriv > /dev/null; then
    apt-get update
    apt-get install -y python3 python3-venv util-linux
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "expected Python 3.10 or newer; choose a newer image" >&2; exit 1; }
id student > /dev/null 2>&1 || useradd --create-home student

python3 -m venv /autograder/venv
/autograder/venv/bin/python -m pip install --quiet -r requirements.txt
chmod -R go-rwx /autograder/source    # the tests, above all the hidden ones, are not for the submission to read
