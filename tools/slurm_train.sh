#!/usr/bin/env bash
# Train as a job of Slurm, a process per GPU.
#
#     GPUS=8 GPUS_PER_NODE=8 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [ARGUMENTS]
#
# ARGUMENTS are those of tools/train.py. Further variables: CPUS_PER_TASK (5), SRUN_ARGS (more
# arguments of srun), GRES (gpu:$GPUS_PER_NODE; empty for processes on CPUs).
[ $# -ge 3 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
[ -z "$4" ] || [ "${4:0:1}" = - ] || set -- "${@:1:3}" --work-dir "${@:4}"
gres=${GRES-gpu:${GPUS_PER_NODE:-8}}
exec srun -p "$1" --job-name="$2" ${gres:+--gres="$gres"} --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 $SRUN_ARGS \
    python -u "$(dirname "$0")/train.py" "$3" --launcher slurm "${@:4}"
