#!/bin/sh
# Audit a model before its release; the exit code is the audit's.
#
#     gate.sh MODEL OUT [options of ghosttrace audit]
#
# OUT must not exist yet; it gets report.html, card.md, audit.sarif, summary.json and the rest.
set -u

if [ "$#" -lt 2 ]; then
    echo "usage: gate.sh MODEL OUT [options of ghosttrace audit]" >&2
    exit 2
fi
model=$1 out=$2
shift 2

ghosttrace audit --model "$model" --out "$out" "$@"
code=$?

case $code in
    0)  echo "PASS: nothing found above the limit by this suite. The ceiling is in $out/card.md; ship the card with the model." ;;
    10) echo "STOP: a leak above the limit. Who can recover what, and what to do: $out/report.html" ;;
    11) echo "STOP: not enough data to tell. How many traces would do: $out/report.html" ;;
    12) echo "STOP: a control failed, and no conclusion may be drawn. Which one: $out/report.html" ;;
    2)  echo "STOP: the audit could not be run as asked; its last line says how to mend it." ;;
    *)  echo "STOP: the audit ended with exit code $code before it came to a verdict." ;;
esac
exit "$code"
