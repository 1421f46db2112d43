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

cktk-preprocess --task summarization --dataset EdinburghNLP/xsum --source-column document --target-column summary \
    --tokenizer facebook/bart-large-xsum --workers "$(nproc)" --dest-dir work/data-bin
cktk-train --config "$recipe.yaml"
cktk-generate work/data-bin --path "work/$recipe" --beam 6 --lenpen 1.0 --min-len 11 --max-len-a 0 --max-len-b 62 --no-repeat-ngram-size 3 \
    --scoring rouge --output "work/$recipe.txt"
