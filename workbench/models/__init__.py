"""Reading a model folder: facts from its configuration without torch, tokenizer, weights, GGUF conversion."""
