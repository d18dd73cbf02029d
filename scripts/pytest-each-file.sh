#!/usr/bin/env bash
# pytest-each-file.sh FOLDER [OPTION...]: pytest for each test file of a folder, in a process of its own. One that a signal ends
# is tried once more: Mesa 22.3's lavapipe now and then ends a process, with the unpatched llama.cpp too (docs/testing.md).
# PYTHON names the interpreter. The exit code is 1 where a file failed, or was ended twice.
set -uo pipefail
folder=$1
shift
failed=
for file in "$folder"/test_*.py; do
    for attempt in first second; do
        "${PYTHON:-python3}" -m pytest "$@" "$file"
        code=$?
        [ $code -gt 128 ] || break
        echo "Signal $((code - 128)) ended the $attempt run of $file." >&2
    done
    [ $code = 0 ] || failed+=" $file"
done
[ -z "$failed" ] || { echo "Failed:$failed" >&2; exit 1; }
