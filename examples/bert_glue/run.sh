#!/usr/bin/env bash
# All eight tasks for one student of ../bert_c4, its GLUE row, and the leaderboard's files: ./run.sh 12x512_cka
# Started again, it continues where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
student=${1:-12x512_cka}
size=${student#*bert_}  # distilbert_6x768_cosine is a BERT of 6x768
size=${size#minilm_}

for task in cola sst2 mrpc qqp stsb mnli qnli rte; do
    cktk-preprocess --task glue --glue-task "$task" --dataset nyu-mll/glue --dataset-config "$task" \
        --tokenizer google-bert/bert-base-uncased --workers "$(nproc)" --dest-dir "work/$task-bin"
    cktk-train --config "$task.yaml" --arch "bert_${size%%_*}" --init-checkpoint "../bert_c4/work/$student" \
        --save-dir "work/$student/$task"
    cktk-generate "work/$task-bin" --path "work/$student/$task" --output "work/$student/submission"
    data="${data:+$data,}work/$task-bin" models="${models:+$models,}work/$student/$task"
done
cktk-evaluate "$data" --task glue --path "$models" --gen-subset valid
