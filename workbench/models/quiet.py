"""Keeps the libraries' own bars and advice off the user's terminal; what matters, Workbench says itself."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Silence transformers, PEFT and bitsandbytes below the level of errors, in this process."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("bitsandbytes", "peft", "accelerate", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft|accelerate")
