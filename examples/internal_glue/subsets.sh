#!/usr/bin/env bash
# Quality against training-set size on QQP, three seeds each: ./subsets.sh, or ./subsets.sh 1000 3000
# Needs the data and the teacher of ./run.sh qqp. Started again, it continues where it was interrupted.
set -euo pipefail
cd "$(dirname "$0")"
sizes=("$@")
[ ${#sizes[@]} -gt 0 ] || sizes=(1000 3000 10000 30000 100000 350000)

for rows in "${sizes[@]}"; do
    for loss in kl progressive stacked; do
        for seed in 1 2 3; do
            cktk-train --config "qqp_$loss.yaml" --train-subset "$rows" --seed "$seed" \
                --save-dir "work/subsets/$loss/subset-$rows/seed-$seed"
        done
    done
done
cktk-report work/subsets/*/subset-*/seed-* --figures data --output work/figures
