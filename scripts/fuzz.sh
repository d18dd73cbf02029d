#!/usr/bin/env bash
# fuzz.sh BUILD NAME SECONDS [OPTION...]: run a fuzz target, with options for libFuzzer. What it finds stays in BUILD/corpus/NAME, what breaks it in BUILD/broken-NAME-*.
set -euo pipefail
corpus=$1/corpus/$2
mkdir -p "$corpus"
runtime=$(sed -n 's/^HALFV_RUNTIME:[A-Z]*=//p' "$1/CMakeCache.txt")
LD_PRELOAD=$runtime UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1:suppressions=$(dirname "$0")/../native/fuzz/upstream.supp" ASAN_OPTIONS=detect_leaks=1 \
    "$1/bin/fuzz-$2" -max_total_time="$3" -max_len=512 -timeout=20 -rss_limit_mb=1500 -malloc_limit_mb=500 \
    -print_final_stats=1 "${@:4}" -artifact_prefix="$1/broken-$2-" "$corpus" "$(dirname "$0")/../native/fuzz/corpus/$2"
