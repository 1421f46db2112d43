#!/usr/bin/env bash
# One recipe from download to score: ./run.sh cka_kd | kl_kd | linear_kd | teacher
# Started again, it continues where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
recipe=${1:-cka_kd}
if [ ! -f "$recipe.yaml" ]; then
    echo "run.sh: no recipe $recipe.yaml; try cka_kd, kl_kd, linear_kd or teacher" >&2
    exit 2
fi

python fetch.py --dest work/data
cktk-preprocess --source-lang en --target-lang fr --train-prefix work/data/train --valid-prefix work/data/valid \
    --test-prefix work/data/test --tokenizer models/teacher --workers 2 --dest-dir work/data-bin
cktk-train --config "$recipe.yaml"
cktk-generate work/data-bin --path "work/$recipe" --beam 4 --scoring sacrebleu --output "work/$recipe.fr"
cktk-evaluate work/data-bin --path "models/teacher,work/$recipe" --beam 4
