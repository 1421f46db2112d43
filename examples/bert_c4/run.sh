#!/usr/bin/env bash
# One recipe from download to score: ./run.sh 12x512_cka
# Started again, it continues where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
recipe=${1:-12x512_cka}
if [ ! -f "$recipe.yaml" ]; then
    echo "run.sh: no recipe $recipe.yaml here" >&2
    exit 2
fi

[ -f work/c4.jsonl ] || python ../c4_sample.py --language en --output work/c4.jsonl
cktk-preprocess --task pretraining --valid-file work/c4.jsonl --tokenizer google-bert/bert-base-uncased \
    --dest-dir work/c4
cktk-train --config "$recipe.yaml"
