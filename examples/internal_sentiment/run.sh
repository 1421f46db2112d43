#!/usr/bin/env bash
# Four students, three seeds each, scores of the test split, and figures. Started again, it continues where it was.
set -euo pipefail
cd "$(dirname "$0")"
reviews=../minilm_sentiment/work
if [ ! -e "$reviews/teacher_label" ]; then
    echo "run.sh: the teacher is missing; run ../minilm_sentiment/experiment.py first" >&2
    exit 2
fi

for seed in 1 2 3; do
    for recipe in kl all progressive stacked; do
        cktk-train --config "$recipe.yaml" --seed "$seed" --save-dir "work/$recipe/seed-$seed"
    done
done
runs=(work/*/seed-*)
last=("${runs[@]/%//checkpoint_last}")
cktk-evaluate "$reviews/label-bin" --gen-subset test --json --path "$(IFS=,; echo "${last[*]}")" > work/test.json
cktk-report "${runs[@]}" work/test.json
cktk-report "${runs[@]}" --figures convergence,attention --output figures \
    --attention-text "The plot is thin, but the acting is wonderful." --layer 2 --head 1
