#!/usr/bin/env bash
# Evaluate on N processes, one per GPU; without a GPU, they share the CPU.
#
#     tools/dist_test.sh CONFIG CHECKPOINT N [ARGUMENTS OF tools/test.py]
#
# Several machines take the variables of tools/dist_train.sh, and a folder that all of them see.
[ $# -ge 3 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
where=(--standalone)
if [ "${NNODES:-1}" != 1 ] || [ -n "$PORT" ]; then
    where=(--nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}")
fi
exec python -m torch.distributed.run "${where[@]}" --nproc_per_node "$3" \
    "$(dirname "$0")/test.py" "$1" "$2" --launcher pytorch "${@:4}"
