#!/bin/sh
# Audit a model before its release and exit with the audit's exit code.
#
#     gate.sh MODEL OUT [options of ghosttrace audit]
#
# OUT is a new folder for report.html, card.md, audit.sarif, summary.json and the other files of the run.
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
    0)  echo "PASS: nothing found above the limit by this suite. Ship $out/card.md, which states the ceiling, with the model." ;;
    10) echo "STOP: a leak above the limit. See $out/report.html for the attackers and the next steps." ;;
    11) echo "STOP: not enough data. See $out/report.html for the number of traces needed." ;;
    12) echo "STOP: a control failed, so no conclusion may be drawn. See $out/report.html for the control." ;;
    2)  echo "STOP: the audit could not run. The last line of its output says how to fix the command." ;;
    *)  echo "STOP: the audit ended with exit code $code before it reached a verdict." ;;
esac
exit "$code"
