#!/usr/bin/env bash
# One recipe from download to score: ./run.sh 12x768_cka
# Started again, it continues where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
recipe=${1:-12x768_cka}
if [ ! -f "$recipe.yaml" ]; then
    echo "run.sh: no recipe $recipe.yaml here" >&2
    exit 2
fi

# work/data holds {train,valid,test}.{en,es}: see README.md.
cktk-preprocess --source-lang en --target-lang es --train-prefix work/data/train --valid-prefix work/data/valid \
    --test-prefix work/data/test --tokenizer google/flan-t5-xl --workers "$(nproc)" --dest-dir work/data-bin
cktk-train --config "$recipe.yaml"
cktk-generate work/data-bin --path "work/$recipe" --source-prompt "Translate from English to Spanish: " --beam 4 \
    --scoring sacrebleu --output "work/$recipe.es"
