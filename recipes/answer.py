"""Ask a saved adapter or a merged model one question, and see whether it stops by itself.

    python recipes/answer.py outputs/smollm2-135m "What is the capital of Japan?"

Hardware: anything with enough memory for the model. The folder is one that a recipe saved; its tokenizer, chat template
and generation config (whose EOS is the end-of-turn token that was trained) are used as they are, and the generation
prompt gets the arguments that the trained answers come after (Qwen3: enable_thinking=False without reasoning).
"""

from __future__ import annotations

from saved_model import command_line, load


def main() -> None:
    parser = command_line("Ask a saved adapter or a merged model one question.")
    parser.add_argument("question")
    args = parser.parse_args()
    saved = load(args.folder, args.max_new_tokens)
    print(*saved.answer([{"role": "user", "content": args.question}]), sep="\n")


if __name__ == "__main__":
    main()
