"""Does a model learn to see? A tiny vision-language model, trained from random weights on drawn shapes, on the CPU.

    python recipes/vision_study.py --seeds 0 1 2

For each seed: held-out questions (which colour, which shape, how many) before and after training, each asked alone with
its picture, and after training also with the picture of another row. A question does not give its answer away, so with
the wrong picture the answers must fall to chance. The model is LLaVA's architecture with 0.4 million weights; its
processor needs no torchvision. Three to four minutes of CPU time a seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import shapes
import torch
from datasets import disable_progress_bars
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast, set_seed
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from trl import SFTConfig, SFTTrainer

from sft_mask import train_on_responses_only

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ("<pad>", "<|user|>", "<|assistant|>", "<|end|>", "<image>")
SIDE, PATCH = 64, 8
CHANCE = {"colour": 1 / len(shapes.COLOURS), "shape": 1 / len(shapes.SHAPES), "number": 1 / len(shapes.NUMBERS)}
KINDS = {"Which": "colour", "What": "shape", "How": "number"}
"""What a question asks, by its first word."""


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose words are those of the questions and answers."""
    parts = (part for row in shapes.rows(64) for message in row["messages"] for part in message["content"])
    texts = sorted({part["text"] for part in parts if "text" in part})
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(SPECIALS), initial_alphabet=alphabet)
    words.train_from_iterator(texts * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<|end|>", additional_special_tokens=list(SPECIALS[1:])
    )


def tiny_model() -> tuple[LlavaProcessor, LlavaForConditionalGeneration]:
    """A processor and a model of LLaVA's architecture, with random weights."""
    tokenizer = tiny_tokenizer()
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        images,
        tokenizer,
        chat_template=TEMPLATE,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    text = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    seeing = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlavaConfig(
        text_config={"model_type": "llama", "num_key_value_heads": 4, "max_position_embeddings": 256, **text, **ids},
        vision_config={"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": PATCH, **seeing},
        image_token_id=processor.image_token_id,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return processor, model


def questions(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    """Each question of the rows, its answer, and its picture."""
    for row in rows:
        for asked, answer in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            yield asked["content"][-1]["text"], answer["content"][0]["text"], row["images"][0]


def right(processor: Any, model: Any, asked: Sequence[tuple[str, str, Any]]) -> dict[str, float]:
    """Share of right answers for each kind of question, sampled greedily; an answer must be whole and end."""
    model.eval()
    by_text: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for text, answer, picture in asked:
        by_text[text].append((answer, picture))
    found = {}
    for text, given in by_text.items():
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        pictures = [picture for _, picture in given]
        batch = processor(text=[prompt] * len(given), images=pictures, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**batch, max_new_tokens=6, do_sample=False)
        said = processor.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :])
        ended = [each.partition("<|end|>") for each in said]
        hits = [words == answer and bool(end) for (words, end, _), (answer, _) in zip(ended, given, strict=True)]
        found[KINDS[text.split()[0]]] = sum(hits) / len(hits)
    return found


def run(seed: int, steps: int, rows: int, asked: int) -> dict[str, dict[str, float]]:
    """Shares of right answers before, after, and after with the picture of another row."""
    set_seed(seed)
    processor, model = tiny_model()
    held_out = list(questions(list(shapes.rows(asked, seed=1_000_000 + seed))))
    pictures = [picture for _, _, picture in held_out]
    swapped = [(*each[:2], other) for each, other in zip(held_out, [*pictures[3:], *pictures[:3]], strict=True)]
    measured = {"before": right(processor, model, held_out)}
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=steps // 20,
            max_length=None,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            seed=seed,
            logging_steps=max(steps // 10, 1),
            save_strategy="no",
            report_to=[],
        )
        data = shapes.dataset(rows, seed=seed)
        trainer = SFTTrainer(model, args, train_dataset=data, processing_class=processor)
        train_on_responses_only(trainer).train()
    measured["after"] = right(processor, model, held_out)
    measured["another picture"] = right(processor, model, swapped)
    return measured


def main(arguments: Sequence[str] | None = None) -> dict[int, dict[str, dict[str, float]]]:
    """Runs the seeds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", type=int, default=4096, help="rows that the model is trained on")
    parser.add_argument("--questions", type=int, default=150, help="held-out pictures, each with two questions")
    args = parser.parse_args(arguments)
    disable_progress_bars()
    print("| seed | question | chance | before | after | after, with another picture |")
    print("|---|---|--:|--:|--:|--:|")
    results = {}
    for seed in args.seeds:
        results[seed] = measured = run(seed, args.steps, args.rows, args.questions)
        for kind, chance in CHANCE.items():
            shares = [chance, *(each.get(kind, 0.0) for each in measured.values())]
            print(f"| {seed} | {kind} | {' | '.join(f'{100 * share:.0f} %' for share in shares)} |", flush=True)
    return results


if __name__ == "__main__":
    main()
