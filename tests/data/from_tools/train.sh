#!/bin/bash
# Trains a LoRA of a cat, two experts at once.
MODELS=/models/wan
OUT="output"

accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 src/musubi_tuner/wan_train_network.py \
  --task i2v-A14B --dit ${MODELS}/low.safetensors --dit_high_noise $MODELS/high.safetensors \
  --vae $MODELS/vae.pth --t5 $MODELS/t5.pth --dataset_config dataset.toml \
  --sdpa --mixed_precision bf16 --fp8_base --fp8_scaled --blocks_to_swap 20 \
  --optimizer_type adamw8bit --optimizer_args weight_decay=0.1 betas=0.9,0.99 --learning_rate 2e-4 \
  --gradient_checkpointing --gradient_accumulation_steps=2 --max_grad_norm 0.5 \
  --max_data_loader_n_workers 2 --persistent_data_loader_workers \
  --network_module networks.lora_wan --network_dim 32 --network_alpha 16 \
  --network_args "loraplus_lr_ratio=4" \
  --timestep_sampling sigma --discrete_flow_shift 3.0 --timestep_boundary 900 \
  --lr_scheduler cosine --lr_warmup_steps 10 \
  --max_train_epochs 16 --save_every_n_epochs 2 --seed 42 \
  --sample_prompts prompts.txt --sample_every_n_steps 25 --sample_at_first \
  --log_with tensorboard --logging_dir logs \
  --output_dir $OUT --output_name cat-lora && echo done
