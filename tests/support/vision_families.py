"""Vision-language models in small: the processor classes of ``transformers`` on tokenizers of a few hundred ids.

Nothing here needs torchvision or the hub. ``build(name)`` makes a processor and a model with random weights;
``build(name, real=folder)`` puts the processor on a real tokenizer instead, without a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.video_processing_utils as video
from support.tiny_chat import trl_templates
from support.tiny_tokenizers import byte_level, sentencepiece
from transformers import AutoTokenizer, processing_utils
from transformers.models.smolvlm import processing_smolvlm

# Without torchvision no video processor is exported, and no processor with a video part can be built.
processing_utils.transformers_module.VideoProcessorMixin = video.VideoProcessorMixin
processing_smolvlm.num2words = processing_smolvlm.num2words or str  # spells the number of a video's frames


class NoVideo(video.BaseVideoProcessor):
    """In place of the video processor, which needs torchvision."""

    merge_size, temporal_patch_size, num_frames, fps, size, do_sample_frames = 2, 2, 1, 1, {}, False
    model_input_names: list[str] = []  # noqa: RUF012  as in the parent

    def __init__(self, **kwargs: object) -> None: ...

    def to_dict(self) -> dict[str, object]:
        return {}

    def fetch_videos(self, videos: object) -> object:
        return videos


WORDS = [" the", " cat", "\n\n", " is", "er", "東", ":", " a"]
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_pad|>")
_GRID = tuple(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))
IDEFICS = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *_GRID)
LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|image|>")

LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' }}{% else %}{{ 'ASSISTANT: ' }}"
    "{% endif %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% if message['role'] == 'user' %}{{ ' ' }}{% else %}{{ '</s>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
INTERN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<IMG_CONTEXT>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|image|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
AUDIO_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'audio' %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {**sizes, **more}


def _vision(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {**sizes, **more}


def _images(model: str, name: str, **options: Any) -> Any:
    module = import_module(f"transformers.models.{model}.image_processing_pil_{model}")
    return getattr(module, f"{name}ImageProcessorPil")(**options)


def _qwen_images(pixels: int, **options: Any) -> Any:
    size = {"shortest_edge": pixels * 4, "longest_edge": pixels * 64}
    return _images("qwen2_vl", "Qwen2VL", size=size, **options)


def _qwen2_5_vl(tokenizer: Any, template: str) -> Any:
    return transformers.Qwen2_5_VLProcessor(_qwen_images(28 * 28), tokenizer, NoVideo(), chat_template=template)


def _qwen_ids(processor: Any) -> dict[str, int]:
    ids = processor.tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": processor.image_token_id,
        "video_token_id": processor.video_token_id,
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def _qwen2_5_vl_model(processor: Any) -> Any:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    seeing = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = transformers.Qwen2_5_VLConfig(
        text_config=_text(processor.tokenizer, rope_parameters=rope),
        vision_config={**seeing, "patch_size": 14, "fullatt_block_indexes": [0]},
        **_qwen_ids(processor),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl(tokenizer: Any, template: str) -> Any:
    images = _qwen_images(32 * 32, patch_size=16)
    return transformers.Qwen3VLProcessor(images, tokenizer, NoVideo(), chat_template=template)


def _qwen3_vl_model(processor: Any) -> Any:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4, "mrope_interleaved": True}
    seeing = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = transformers.Qwen3VLConfig(
        text_config=_text(processor.tokenizer, head_dim=16, rope_parameters=rope),
        vision_config={**seeing, "patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 256},
        **_qwen_ids(processor),
    )
    return transformers.Qwen3VLForConditionalGeneration(config)


def _gemma3(tokenizer: Any, template: str) -> Any:
    images = _images("gemma3", "Gemma3", size={"height": 56, "width": 56})
    return transformers.Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=template)


def _gemma3_model(processor: Any) -> Any:
    tokenizer = processor.tokenizer
    config = transformers.Gemma3Config(
        text_config=_text(tokenizer, head_dim=16, sliding_window=64),
        vision_config=_vision(image_size=56, patch_size=14),
        mm_tokens_per_image=4,
        image_token_id=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


_TILES = {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 64}}


def _smolvlm(tokenizer: Any, template: str) -> Any:
    images = _images("smolvlm", "SmolVLM", **_TILES)
    return transformers.SmolVLMProcessor(images, tokenizer, NoVideo(), image_seq_len=4, chat_template=template)


def _idefics3(tokenizer: Any, template: str) -> Any:
    images = _images("idefics3", "Idefics3", **_TILES)
    return transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template)


def _tiled_model(name: str) -> Callable[[Any], Any]:
    def build(processor: Any) -> Any:
        config = getattr(transformers, f"{name}Config")(
            text_config={**_text(processor.tokenizer), "model_type": "llama"},
            vision_config=_vision(image_size=64, patch_size=16),
            scale_factor=2,
            image_token_id=processor.image_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)

    return build


_LLAVA = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_PINPOINTS = [[56, 112], [112, 56], [112, 112]]
_CROP = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}


def _llava(tokenizer: Any, template: str) -> Any:
    images = _images("clip", "CLIP", **_CROP)
    return transformers.LlavaProcessor(images, tokenizer, chat_template=template, **_LLAVA)


def _llava_next(tokenizer: Any, template: str) -> Any:
    images = _images("llava_next", "LlavaNext", image_grid_pinpoints=_PINPOINTS, **_CROP)
    return transformers.LlavaNextProcessor(images, tokenizer, chat_template=template, **_LLAVA)


def _llava_model(name: str, **more: Any) -> Callable[[Any], Any]:
    def build(processor: Any) -> Any:
        seeing = _vision(image_size=56, patch_size=14, projection_dim=32)
        config = getattr(transformers, f"{name}Config")(
            text_config={**_text(processor.tokenizer), "model_type": "llama"},
            vision_config={**seeing, "model_type": "clip_vision_model"},
            image_token_id=processor.image_token_id,
            vision_feature_layer=-1,
            **more,
        )
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)

    return build


def _internvl(tokenizer: Any, template: str) -> Any:
    size = {"height": 56, "width": 56}
    images = _images("got_ocr2", "GotOcr2", size=size, crop_to_patches=True, max_patches=4)
    return transformers.InternVLProcessor(images, tokenizer, NoVideo(), image_seq_length=4, chat_template=template)


def _internvl_model(processor: Any) -> Any:
    config = transformers.InternVLConfig(
        text_config={**_text(processor.tokenizer), "model_type": "qwen2"},
        vision_config=_vision(image_size=[56, 56], patch_size=[14, 14]),
        image_token_id=processor.image_token_id,
    )
    return transformers.InternVLForConditionalGeneration(config)


def _mllama(tokenizer: Any, template: str) -> Any:
    images = _images("mllama", "Mllama", size={"height": 56, "width": 56}, max_image_tiles=2)
    return transformers.MllamaProcessor(images, tokenizer, chat_template=template)


def _qwen2_audio(tokenizer: Any, template: str) -> Any:
    sounds = transformers.WhisperFeatureExtractor(feature_size=16)
    return transformers.Qwen2AudioProcessor(sounds, tokenizer, chat_template=template)


@dataclass(frozen=True)
class Family:
    """How a processor, its tokenizer and its model are built.

    Attributes:
        processor: from a tokenizer and a template.
        template: source of the chat template.
        stop: the token that ends an answer.
        specials: control tokens that the processor and the template need.
        model: from the processor; ``None`` where no model is built here.
        real: the real tokenizer's name in :mod:`support.conformance.tokenizers`.
        named: special tokens that the processor looks up by name.
        blanks: whether the tokenizer is a SentencePiece one.
        media: control tokens around images, which no answer contains.
    """

    processor: Callable[[Any, str], Any]
    template: Callable[[], str]
    stop: str
    specials: tuple[str, ...]
    model: Callable[[Any], Any] | None
    real: str
    named: Mapping[str, str] | None = None
    blanks: bool = False
    media: tuple[str, ...] = ()


def _trl(name: str) -> Callable[[], str]:
    return lambda: trl_templates()[name]


_SOFT = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
_INTERN = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_FRAME = ("<|vision_start|>", "<|vision_end|>")
_TILE_FRAME = ("<fake_token_around_image>", "<global-img>")

FAMILIES = {
    "qwen2_5_vl": Family(
        _qwen2_5_vl, _trl("qwen2_5_vl"), "<|im_end|>", CHATML + VISION, _qwen2_5_vl_model, "qwen3", media=_FRAME
    ),
    "qwen3_vl": Family(
        _qwen3_vl, _trl("qwen3_vl"), "<|im_end|>", CHATML + VISION, _qwen3_vl_model, "qwen3", media=_FRAME
    ),
    "gemma3": Family(
        _gemma3,
        _trl("gemma3"),
        "<end_of_turn>",
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        _gemma3_model,
        "gemma3",
        named=_SOFT,
        blanks=True,
        media=("<start_of_image>", "<end_of_image>"),
    ),
    "smolvlm": Family(
        _smolvlm,
        _trl("smolvlm"),
        "<end_of_utterance>",
        ("<|im_start|>", *IDEFICS),
        _tiled_model("SmolVLM"),
        "smollm2",
        media=_TILE_FRAME,
    ),
    "idefics3": Family(
        _idefics3,
        _trl("idefics3"),
        "<end_of_utterance>",
        ("<|begin_of_text|>", *IDEFICS),
        _tiled_model("Idefics3"),
        "llama3_1",
        media=_TILE_FRAME,
    ),
    "llava": Family(
        _llava, lambda: LLAVA_TEMPLATE, "</s>", ("<image>",), _llava_model("Llava"), "mistral_v1", blanks=True
    ),
    "llava_next": Family(
        _llava_next,
        _trl("llava_next"),
        "</s>",
        ("<image>",),
        _llava_model("LlavaNext", image_grid_pinpoints=_PINPOINTS),
        "mistral_v1",
        blanks=True,
    ),
    "internvl": Family(
        _internvl,
        lambda: INTERN_TEMPLATE,
        "<|im_end|>",
        CHATML,
        _internvl_model,
        "qwen3",
        named=_INTERN,
        media=("<img>", "</img>"),
    ),
    "mllama": Family(_mllama, lambda: LLAMA_TEMPLATE, "<|eot_id|>", LLAMA, None, "llama3_1"),
    "qwen2_audio": Family(
        _qwen2_audio,
        lambda: AUDIO_TEMPLATE,
        "<|im_end|>",
        (*CHATML, "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
        None,
        "qwen3",
    ),
}
"""Every family; those with a model can be trained."""

IMAGES = tuple(name for name in FAMILIES if name not in ("mllama", "qwen2_audio"))
"""Families that take any number of images in a row."""


def build(name: str, real: Path | None = None) -> tuple[Any, Any]:
    """The processor of a family and its model, with random weights; with a real tokenizer no model."""
    family = FAMILIES[name]
    tokenizer = _tiny_tokenizer(family) if real is None else _real_tokenizer(family, real)
    processor = family.processor(tokenizer, family.template())
    if family.model is None or real is not None:
        return processor, None
    torch.manual_seed(0)
    model = family.model(processor)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(family.stop)
    return processor, model


def _tiny_tokenizer(family: Family) -> Any:
    specials = [*family.specials, *(family.named or {}).values(), "<pad>"]
    if family.blanks:
        words = ["▁the", "▁cat", "▁is", "er", "▁a"]
        tokenizer = sentencepiece(words, ["<s>", "</s>", *specials], legacy="<bos>" not in specials)
    else:
        tokenizer = byte_level(WORDS, [*specials, "</s>"])
    return _named(family, tokenizer, {"pad_token": "<pad>"})


def _real_tokenizer(family: Family, folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = set(tokenizer.get_vocab())
    missing = [text for text in (*family.specials, *(family.named or {}).values()) if text not in known]
    tokenizer.add_special_tokens({"additional_special_tokens": missing} if missing else {})
    padding = {} if tokenizer.pad_token is not None else {"pad_token": "<pad>"}
    return _named(family, tokenizer, padding)


def _named(family: Family, tokenizer: Any, more: Mapping[str, str]) -> Any:
    """The tokenizer with its special tokens under the names by which the processor and the template ask for them."""
    begin = next((text for text in ("<bos>", "<|begin_of_text|>", "<s>") if text in tokenizer.get_vocab()), None)
    names = {**more, "eos_token": family.stop, **({"bos_token": begin} if begin else {})}
    tokenizer.add_special_tokens(names)
    for key, text in (family.named or {}).items():
        tokenizer._set_model_specific_special_tokens({key: text})
    return tokenizer
