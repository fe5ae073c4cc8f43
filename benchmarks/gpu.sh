#!/bin/sh
# What a GPU needs for a line in benchmarks/RESULTS.md, in some ten minutes: a step of joint training
# with the shape of an 8B model, beside the plain Trainer; generation beside a plain loop.
#
#     sh benchmarks/gpu.sh PEAK MODEL PROMPTS      PEAK: the device's dense bf16 rate in TFLOP/s
#     SMALL=1 sh benchmarks/gpu.sh 1 MODEL PROMPTS  small shapes, to try it on a CPU
set -eu
peak=$1 model=$2 prompts=$3
here=$(dirname "$0")
if [ -n "${SMALL:-}" ]; then
    shape="--vocabulary 4000 --new 500 --hidden 128 --layers 2 --tokens 512 --block 256"
    sizes="--count 4 --batch 2 --tokens 16 --rounds 1"
else
    shape="--vocabulary 128256 --new 32000 --hidden 4096 --intermediate 14336 --kv-heads 16"
    shape="$shape --layers 32 --tokens 8192 --block 1024"
    sizes="--count 256 --batch 64 --tokens 256 --rounds 1"
fi
python "$here/training.py" $shape --steps 6 --rounds 1 --ways plain new_rows --peak "$peak"
python "$here/generation.py" "$model" --prompts "$prompts" $sizes
