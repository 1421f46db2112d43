#!/usr/bin/env bash
# One recipe from download to score: ./run.sh 12x384_cka
# Started again, it continues where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
recipe=${1:-12x384_cka}
if [ ! -f "$recipe.yaml" ]; then
    echo "run.sh: no recipe $recipe.yaml here" >&2
    exit 2
fi

cktk-preprocess --source-lang en_XX --target-lang ro_RO --dataset wmt/wmt16 --dataset-config ro-en \
    --tokenizer facebook/mbart-large-en-ro --workers "$(nproc)" --dest-dir work/data-bin
cktk-train --config "$recipe.yaml"
cktk-generate work/data-bin --path "work/$recipe" --beam 5 --scoring sacrebleu --output "work/$recipe.ro"
