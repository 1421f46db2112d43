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

# work/wmt14 and work/iwslt17 hold {train,valid,test}.{en,fr}: see README.md.
for corpus in wmt14 iwslt17; do
    cktk-preprocess --source-lang en_XX --target-lang fr_XX --train-prefix "work/$corpus/train" \
        --valid-prefix "work/$corpus/valid" --test-prefix "work/$corpus/test" \
        --tokenizer facebook/mbart-large-50 --workers "$(nproc)" --dest-dir "work/$corpus-bin"
done
cktk-train --config "$recipe.yaml"
cktk-generate work/iwslt17-bin --path "work/$recipe" --beam 5 --scoring sacrebleu --output "work/$recipe.fr"
