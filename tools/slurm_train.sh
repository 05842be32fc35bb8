#!/usr/bin/env bash
# Train on a Slurm cluster: one task per GPU, the launcher reads ranks and addresses from Slurm.
#
#   sbatch --nodes=2 --gpus-per-node=8 tools/slurm_train.sh configs/finetune_full.py --deepspeed deepspeed_zero3
#
# Slurm warns the job three minutes before its time limit (and, where it is set up so, before preemption): the ranks drop the
# unfinished step and save, the job queues itself again and goes on from that checkpoint with the same arguments.
#
#SBATCH --job-name=vlm
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --output=work_dirs/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[ "$#" -ge 1 ] || { echo "usage: sbatch tools/slurm_train.sh CONFIG [arguments of tools/train.py]" >&2; exit 2; }
[ -x .venv/bin/python ] || { echo "no .venv here: run 'make setup' once on a node with network access" >&2; exit 2; }

export MASTER_PORT="${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 10000))}"
# What the run prints when it is stopped: the command that goes on.
XTUNER_PLUGINS_COMMAND="$(printf '%q ' sbatch tools/slurm_train.sh "$@")"
export XTUNER_PLUGINS_COMMAND
resume=()
[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || resume=(--resume)

warned=""
trap 'warned=yes; kill -USR1 "$step"' USR1
# A rank that fails must end the job, and its status must be the job's.
srun --kill-on-bad-exit=1 .venv/bin/python tools/train.py "$@" "${resume[@]}" --launcher slurm &
step=$!
status=0
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do  # the warning has ended the first wait
    status=0
    wait "$step" || status=$?
done
if [ -n "$warned" ] && [ "$status" -ne 0 ]; then
    echo "stopped by Slurm's warning: queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
