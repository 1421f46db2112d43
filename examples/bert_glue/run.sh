#!/usr/bin/env bash
# All eight tasks for one student, and its GLUE row: ./run.sh 12x512
# Started again, it continues where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
student=${1:-12x512}

for task in cola sst2 mrpc qqp stsb mnli qnli rte; do
    cktk-preprocess --task glue --glue-task "$task" --dataset nyu-mll/glue --dataset-config "$task" \
        --tokenizer google-bert/bert-base-uncased --workers "$(nproc)" --dest-dir "work/$task-bin"
    cktk-train --config "$task.yaml" --arch "bert_$student" --init-checkpoint "../bert_c4/work/${student}_cka" \
        --save-dir "work/$student/$task"
done
