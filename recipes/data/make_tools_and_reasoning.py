"""Writes two small example datasets: conversations with tool calls, and answers with their reasoning.

    python recipes/data/make_tools_and_reasoning.py [FOLDER]

Writes ``tools.jsonl`` and ``reasoning.jsonl`` to FOLDER (by default: next to this file), identical on every machine.
They show the format of such data and are enough to try a recipe; they are not meant for real training.

A row of ``tools.jsonl`` has ``messages`` and ``tools``. The definitions and every call's arguments are JSON text: rows
with different tools then have the same type, where nested columns would fill each other's fields with nulls.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

SEED = 21
ROWS = 64

CITIES = ("Lisbon", "Oslo", "Nairobi", "Lima", "Kyoto", "東京", "Zürich", "Perth")
SKIES = ("clear", "rain", "snow", "fog")
GOODS = ("pens", "plates", "stamps", "apples", "tiles", "tickets")


def tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    fields = {key: {"type": kind} for key, kind in properties.items()}
    parameters = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    tool("weather", "The weather of a city now.", city="string"),
    tool("multiply", "The product of two whole numbers.", first="integer", second="integer"),
]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    text = json.dumps(arguments, ensure_ascii=False)
    calls = [{"type": "function", "function": {"name": name, "arguments": text}}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def weather_row(rng: random.Random) -> list[dict[str, Any]]:
    city, sky, degrees = rng.choice(CITIES), rng.choice(SKIES), rng.randint(-9, 33)
    return [
        {"role": "user", "content": f"What is the weather in {city}?"},
        call("weather", city=city),
        {"role": "tool", "name": "weather", "content": json.dumps({"sky": sky, "celsius": degrees})},
        {"role": "assistant", "content": f"In {city} it is {degrees} °C, with {sky} skies reported."},
    ]


def multiply_row(rng: random.Random) -> list[dict[str, Any]]:
    first, second, goods = rng.randint(12, 99), rng.randint(12, 99), rng.choice(GOODS)
    return [
        {"role": "user", "content": f"I have {first} boxes of {second} {goods}. How many {goods} is that?"},
        call("multiply", first=first, second=second),
        {"role": "tool", "name": "multiply", "content": str(first * second)},
        {"role": "assistant", "content": f"That is {first * second} {goods}."},
        {"role": "user", "content": "Thank you!"},
        {"role": "assistant", "content": "You are welcome."},
    ]


def reasoning_row(rng: random.Random) -> list[dict[str, Any]]:
    whole, taken, goods = rng.randint(30, 99), rng.randint(2, 9), rng.choice(GOODS)
    thought = f"There are {whole} {goods}. Taking {taken} away leaves {whole} - {taken} = {whole - taken}."
    return [
        {"role": "user", "content": f"Of {whole} {goods} I give away {taken}. How many are left?"},
        {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{whole - taken} {goods} are left."},
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    rng = random.Random(SEED)
    tools = json.dumps(TOOLS, ensure_ascii=False)
    kinds = (weather_row, multiply_row)
    write(folder / "tools.jsonl", [{"messages": kinds[at % 2](rng), "tools": tools} for at in range(ROWS)])
    write(folder / "reasoning.jsonl", [{"messages": reasoning_row(rng)} for _ in range(ROWS)])


if __name__ == "__main__":
    main()
