#!/usr/bin/env bash
# Evaluate as a job of Slurm, a process per GPU.
#
#     GPUS=8 GPUS_PER_NODE=8 tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [ARGUMENTS]
#
# ARGUMENTS are those of tools/test.py; the variables are those of tools/slurm_train.sh.
[ $# -ge 4 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
gres=${GRES-gpu:${GPUS_PER_NODE:-8}}
exec srun -p "$1" --job-name="$2" ${gres:+--gres="$gres"} --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 $SRUN_ARGS \
    python -u "$(dirname "$0")/test.py" "$3" "$4" --launcher slurm "${@:5}"
