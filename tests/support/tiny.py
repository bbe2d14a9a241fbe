"""A real Llama, tiny and random, in a real folder: what stages and trainers can be tested on in seconds."""

from __future__ import annotations

from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXT = [
    "Headline: local man wins prize\nSarcastic: 0",
    "Headline: area cat unimpressed by everything\nSarcastic: 1",
    "What is the capital of France? Paris. yes no maybe 0123456789",
    '{"intent": "PlayMusic", "artist": "Nina Simone"}',
]


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of about 400 tokens, in which pad is eos, as in many real models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def make_model(folder: Path, *, layers: int = 2, hidden: int = 64, seed: int = 0) -> Path:
    """A random Llama with a tokenizer and chat template, as safetensors in bfloat16. Returns the folder."""
    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    transformers.utils.logging.disable_progress_bar()
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder
