"""Chat in the terminal with a saved adapter or a merged model.

    python recipes/chat.py outputs/quickstart
    python recipes/chat.py outputs/smollm2-135m --system "Answer in one sentence."

Hardware: anything with enough memory for the model. It is asked as it was trained: with the tokenizer, the chat
template and the arguments of the generation prompt saved beside it, and an answer ends at the end-of-turn token that
was trained. The whole conversation is sent with each message.
"""

from __future__ import annotations

from saved_model import SavedModel, command_line, load
from transformers import TextStreamer

COMMANDS = "/new starts a new conversation, /quit (or Ctrl-D) ends; Ctrl-C stops an answer"
Messages = list[dict[str, str]]


def main() -> None:
    parser = command_line(__doc__, f"In the chat: {COMMANDS}.")
    parser.add_argument("--system", help="a system prompt, if the model was trained with one")
    args = parser.parse_args()
    first: Messages = [{"role": "system", "content": args.system}] if args.system else []
    chat(load(args.folder, args.max_new_tokens), first)


def chat(saved: SavedModel, first: Messages) -> None:
    print(COMMANDS)
    messages = [*first]
    while (said := read()) != "/quit":
        if said == "/new":
            messages = [*first]
            print("(a new conversation)")
        elif said.startswith("/"):
            print(f"(there is no {said.split()[0]}: {COMMANDS})")
        elif said:
            messages = reply(saved, [*messages, {"role": "user", "content": said}])


def read() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return "/quit"


def reply(saved: SavedModel, messages: Messages) -> Messages:
    """Streams an answer; the conversation with it, or without its last question if the answer was stopped."""
    streamer = TextStreamer(saved.tokenizer, skip_prompt=True, skip_special_tokens=True)
    try:
        answer, remark = saved.answer(messages, streamer)
    except KeyboardInterrupt:
        print("\n(stopped; this question is forgotten)")
        return messages[:-1]
    print(remark)
    return [*messages, {"role": "assistant", "content": answer}]


if __name__ == "__main__":
    main()
