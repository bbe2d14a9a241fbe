"""Supervised fine-tuning on TRL and PEFT, and merging; what `accelerate launch` starts."""
