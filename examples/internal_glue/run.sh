#!/usr/bin/env bash
# Teacher and four students of each task, and a row of scores for each: ./run.sh, or ./run.sh rte mrpc
# Started again, it continues where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
tasks=("$@")
[ ${#tasks[@]} -gt 0 ] || tasks=(cola qqp mrpc rte)

for task in "${tasks[@]}"; do
    cktk-preprocess --task glue --glue-task "$task" --dataset nyu-mll/glue --dataset-config "$task" \
        --tokenizer google-bert/bert-base-uncased --workers "$(nproc)" --dest-dir "work/$task-bin"
    cktk-train --config "teacher_$task.yaml"
    for loss in kl all progressive stacked; do
        cktk-train --config "${task}_$loss.yaml"
    done
    cktk-evaluate "work/$task-bin" --task glue --gen-subset valid \
        --path "work/teacher/$task,work/kl/$task,work/all/$task,work/progressive/$task,work/stacked/$task"
done
