#!/usr/bin/env bash
# Train on N processes, one per GPU; without a GPU, they share the CPU.
#
#     tools/dist_train.sh CONFIG N [ARGUMENTS OF tools/train.py]
#
# For several machines, run this on each, with N processes each and these variables: NNODES, the
# number of machines; NODE_RANK, from 0; MASTER_ADDR, the address of machine 0; PORT, a free one of
# it (29500). A single run without PORT takes a free port.
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
where=(--standalone)
if [ "${NNODES:-1}" != 1 ] || [ -n "$PORT" ]; then
    where=(--nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}")
fi
exec python -m torch.distributed.run "${where[@]}" --nproc_per_node "$2" \
    "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
