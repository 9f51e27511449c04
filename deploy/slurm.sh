#!/bin/bash
# One job on Slurm, with a Ray cluster of its own on the nodes of the allocation. From the folder of pyproject.toml,
# which like the environment, the shards and the output is on a file system that all nodes share:
#   sbatch deploy/slurm.sh job.yaml   start; further arguments go to `kintsugi run`
#   tail -f kintsugi-JOBID.log        follow
#   scancel JOBID                     stop; the same sbatch continues
# Fields marked FILL IN must be yours. What is behind them: docs/clusters.md.

#SBATCH --job-name=kintsugi
#SBATCH --output=kintsugi-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=2             # FILL IN
#SBATCH --gpus-per-node=4     # FILL IN: each GPU gets an actor
#SBATCH --cpus-per-task=32    # FILL IN: the cores of a node
#SBATCH --time=12:00:00       # FILL IN
#SBATCH --ntasks-per-node=1   # one Ray per node
#SBATCH --mem=0               # all of the node's memory
#SBATCH --exclusive           # Ray refuses a node on which another Ray of yours runs
#SBATCH --requeue             # a lost node, or the end of the time: the job is queued again and continues
#SBATCH --signal=B:USR1@600   # ten minutes before the end, to this script alone, not to Ray's processes

set -euo pipefail
job=${1:?usage: sbatch deploy/slurm.sh job.yaml}
source .venv/bin/activate  # FILL IN: where `pip install .` was done

# Only processes of this job have the token.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300  # seconds until all nodes must have joined

# This script runs on the first node, which becomes the head. FILL IN the address of a faster network, if any.
address=$(hostname -I | cut -d ' ' -f 1):6379

# The driver finishes the units in hand on SIGTERM; it leaves its process id here.
driver=$(mktemp)
stopped=""
stop() {
    stopped=$1
    [ ! -s "$driver" ] || kill -TERM "$(cat "$driver")"
}
trap 'stop "end of time"' USR1
trap 'stop cancelled' TERM  # by scancel; a preempted job is queued again by Slurm
trap 'rm -f "$driver"' EXIT

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus "$SLURM_CPUS_PER_TASK" --include-dashboard=false --disable-usage-stats -- \
    bash -c 'echo $$ > "$0"; exec "$@"' "$driver" \
    python -m kintsugi run "$job" --address auto "${@:2}" &
code=0
wait $! || code=$?
if [ -n "$stopped" ]; then  # the signal ended the first wait
    code=0
    wait $! || code=$?
    if [ "$code" -gt 128 ] && [ "$stopped" = "end of time" ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
