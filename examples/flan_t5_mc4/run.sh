#!/usr/bin/env bash
# One recipe from download to score: ./run.sh 24x768_cka
# Started again, it continues where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
recipe=${1:-24x768_cka}
if [ ! -f "$recipe.yaml" ]; then
    echo "run.sh: no recipe $recipe.yaml here" >&2
    exit 2
fi

for code in en es ja fa hi fr zh bn de it te ar pl ta pt ur gl he ko th nl id tr vi ru sv fi sw ro lt cs ms so el; do
    case "$code" in # mC4's names; its `en` is C4
        he) language=iw ;;
        en) language=en-multi ;;
        *) language=$code ;;
    esac
    [ -f "work/$code.jsonl" ] || python ../c4_sample.py --language "$language" --output "work/$code.jsonl"
    cktk-preprocess --task pretraining --lang "$code" --valid-file "work/$code.jsonl" --tokenizer google/flan-t5-xl \
        --dest-dir "work/$code"
done
cktk-train --config "$recipe.yaml"
