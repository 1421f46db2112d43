#!/usr/bin/env bash
# One recipe from download to score: ./run.sh 6x640_cka
# Started again, it continues where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
recipe=${1:-6x640_cka}
if [ ! -f "$recipe.yaml" ]; then
    echo "run.sh: no recipe $recipe.yaml here" >&2
    exit 2
fi

cktk-preprocess --task summarization --dataset abisee/cnn_dailymail --dataset-config 3.0.0 --source-column article --target-column highlights \
    --tokenizer facebook/bart-large-cnn --workers "$(nproc)" --dest-dir work/data-bin
cktk-train --config "$recipe.yaml"
cktk-generate work/data-bin --path "work/$recipe" --beam 4 --lenpen 2.0 --min-len 56 --max-len-a 0 --max-len-b 142 --no-repeat-ngram-size 3 \
    --scoring rouge --output "work/$recipe.txt"
