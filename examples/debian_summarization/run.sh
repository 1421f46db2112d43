#!/usr/bin/env bash
# One recipe from download to score: ./run.sh cka
# Started again, it continues where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
recipe=${1:-cka}
if [ ! -f "$recipe.yaml" ]; then
    echo "run.sh: no recipe $recipe.yaml here" >&2
    exit 2
fi

python fetch.py
cktk-preprocess --task summarization --source-column description --target-column synopsis \
    --train-file work/data/train.tsv --valid-file work/data/valid.tsv --test-file work/data/test.tsv \
    --tokenizer ../debian_translation/models/teacher --workers 2 --dest-dir work/data-bin
[ "$recipe" = teacher ] || cktk-train --config teacher.yaml
cktk-train --config "$recipe.yaml"
cktk-evaluate work/data-bin --path "work/teacher,work/$recipe" --beam 4 --max-len-a 0 --max-len-b 40 \
    --no-repeat-ngram-size 3
