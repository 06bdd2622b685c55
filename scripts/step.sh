#!/bin/sh
# step.sh WHAT COMMAND...: say WHAT, run the command quietly, show its words only where it fails.
what=$1
shift
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
trap 'exit 130' INT TERM
printf '%s ... ' "$what"
start=$(date +%s)
"$@" >"$log" 2>&1
status=$?
if [ "$status" -eq 0 ]; then
    printf 'done (%d s)\n' "$(($(date +%s) - start))"
else
    printf 'FAILED: %s\n' "$*"
    # pip warns once per package about every index directory that a machine lacks
    grep -v "^WARNING: Location .* is ignored" "$log" | tail -n 40
fi
exit "$status"
