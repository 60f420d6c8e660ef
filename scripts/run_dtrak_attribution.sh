#!/usr/bin/env bash
# Attribute generated files to training items: features, scores, tables and a page. Started again, it continues.
#
# Without settings it expects the layout of docs/jamendo.md: model_unwrap.ckpt, the shipped config of training data, and
# queries in outputs/generated_queries, whose prompts are in manifest.jsonl or prompt_manifest.json.
#
#   MODEL_CONFIG=model.json UNWRAPPED_CKPT=model.safetensors TRAIN_DATASET_CONFIG=train.json \
#     QUERY_AUDIO_DIR=outputs/generated bash scripts/run_dtrak_attribution.sh
set -euo pipefail
cd "$(dirname "$0")/.."

DATASET_CONFIGS=stable_audio_tools/configs/dataset_configs
MODEL_CONFIG="${MODEL_CONFIG:-jamendo_freeze_vae}"      # a model config (JSON), or the name of a shipped one
UNWRAPPED_CKPT="${UNWRAPPED_CKPT:-model_unwrap.ckpt}"   # weights of the model
TRAIN_DATASET_CONFIG="${TRAIN_DATASET_CONFIG:-$DATASET_CONFIGS/local_training_custom.json}" # what it was trained on
QUERY_AUDIO_DIR="${QUERY_AUDIO_DIR:-outputs/generated_queries}" # folder with the manifest of generate.py
QUERY_DATASET_CONFIG="${QUERY_DATASET_CONFIG:-}"                # or a dataset config of the queries instead
TRAIN_EXCLUDE_PATHS_FILE="${TRAIN_EXCLUDE_PATHS_FILE:-}"
PRETRANSFORM_CKPT="${PRETRANSFORM_CKPT:-}"
REMOVE_PRETRANSFORM_WEIGHT_NORM="${REMOVE_PRETRANSFORM_WEIGHT_NORM:-none}"
OUT_DIR="${OUT_DIR:-outputs/dtrak_attribution}"
TRAIN_COUNT="${TRAIN_COUNT:-}" # the first so many items; empty: all
QUERY_COUNT="${QUERY_COUNT:-}"

PROJ_DIM="${PROJ_DIM:-8192}"
USED_DIM="${USED_DIM:-}"
PROJECTION="${PROJECTION:-sketch}"
K="${K:-10}"
CROPS="${CROPS:-4}" # random crops of each training item, averaged; 1: the first window only, a quarter of the time
T_STRATEGY="${T_STRATEGY:-uniform}"
NUM_TRAIN_STEPS="${NUM_TRAIN_STEPS:-1000}"
F_OBJECTIVE="${F_OBJECTIVE:-mean-squared-l2-norm}" # D-TRAK; loss is TRAK
LAMBDA_REG="${LAMBDA_REG:-}" # in units of the mean squared norm of a training feature; empty: chosen from the features
CFG_DROPOUT_PROB="${CFG_DROPOUT_PROB:-0.0}"
PARAM_REGEX="${PARAM_REGEX:-}" # such as 'layers\.(1[6-9]|2[0-3])\.' for the last eight of 24 layers
BATCH_SIZE="${BATCH_SIZE:-16}"
NUM_WORKERS="${NUM_WORKERS:-4}"
DEVICE="${DEVICE:-auto}"
PROCESSES="${PROCESSES:-1}" # more than one: torchrun, one GPU each
PYTHON="${PYTHON:-python}"

common=(
  --model-config "$MODEL_CONFIG" --pretrained-ckpt-path "$UNWRAPPED_CKPT"
  --remove-pretransform-weight-norm "$REMOVE_PRETRANSFORM_WEIGHT_NORM"
  --proj-dim "$PROJ_DIM" --projection "$PROJECTION" --K "$K" --t-strategy "$T_STRATEGY"
  --num-train-steps "$NUM_TRAIN_STEPS" --f "$F_OBJECTIVE" --cfg-dropout-prob "$CFG_DROPOUT_PROB"
  --batch-size "$BATCH_SIZE" --num-workers "$NUM_WORKERS" --device "$DEVICE"
)
[[ -n "$USED_DIM" ]] && common+=(--used-dim "$USED_DIM")
[[ -n "$PARAM_REGEX" ]] && common+=(--param-regex "$PARAM_REGEX")
[[ -n "$PRETRANSFORM_CKPT" ]] && common+=(--pretransform-ckpt-path "$PRETRANSFORM_CKPT")

train=(--dataset-config "$TRAIN_DATASET_CONFIG")
if ((CROPS > 1)); then train+=(--crops "$CROPS"); else train+=(--disable-random-crop); fi
[[ -n "$TRAIN_COUNT" ]] && train+=(--max-examples "$TRAIN_COUNT")
[[ -n "$TRAIN_EXCLUDE_PATHS_FILE" ]] && train+=(--exclude-paths-file "$TRAIN_EXCLUDE_PATHS_FILE")
if [[ -z "$QUERY_DATASET_CONFIG" && ! -f "$QUERY_AUDIO_DIR/manifest.jsonl" && "$QUERY_AUDIO_DIR" == outputs/generated_queries ]]; then
  QUERY_DATASET_CONFIG="$DATASET_CONFIGS/dtrak_generated_queries.json"
fi
query=(--generated "$QUERY_AUDIO_DIR")
[[ -n "$QUERY_DATASET_CONFIG" ]] && query=(--dataset-config "$QUERY_DATASET_CONFIG" --disable-random-crop)
[[ -n "$QUERY_COUNT" ]] && query+=(--max-examples "$QUERY_COUNT")

mkdir -p "$OUT_DIR"
echo "[1/3] features of the training items"
if ((PROCESSES > 1)); then
  "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$PROCESSES" \
    scripts/dtrak_extract_features.py "${common[@]}" "${train[@]}" --feature-path "$OUT_DIR/train_features.memmap"
  "$PYTHON" scripts/dtrak_merge.py --feature-path "$OUT_DIR/train_features.memmap"
else
  "$PYTHON" scripts/dtrak_extract_features.py "${common[@]}" "${train[@]}" --feature-path "$OUT_DIR/train_features.memmap"
fi
echo "[2/3] features of the queries"
"$PYTHON" scripts/dtrak_extract_features.py "${common[@]}" "${query[@]}" --feature-path "$OUT_DIR/query_features.memmap"
echo "[3/3] scores"
"$PYTHON" scripts/dtrak_score.py \
  --train-feature-paths "$OUT_DIR/train_features.memmap" \
  --query-feature-path "$OUT_DIR/query_features.memmap" \
  --output-score-path "$OUT_DIR/scores_query_x_train.memmap" \
  --report-dir "$OUT_DIR" ${LAMBDA_REG:+--lambda-reg "$LAMBDA_REG"}
