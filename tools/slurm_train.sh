#!/usr/bin/env bash
# Train on a Slurm cluster: one task a GPU, the launcher reads ranks and addresses from Slurm.
#
#   sbatch --nodes=2 --gpus-per-node=8 tools/slurm_train.sh configs/finetune_full.py --deepspeed deepspeed_zero3
#
#SBATCH --job-name=vlm
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --output=work_dirs/%x-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[ "$#" -ge 1 ] || { echo "usage: sbatch tools/slurm_train.sh CONFIG [arguments of tools/train.py]" >&2; exit 2; }
[ -x .venv/bin/python ] || { echo "no .venv here: run 'make setup' once on a node with network access" >&2; exit 2; }

export MASTER_PORT="${MASTER_PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 10000))}"
# A rank that fails must end the job, and its status must be the job's.
srun --kill-on-bad-exit=1 .venv/bin/python tools/train.py "$@" --launcher slurm
