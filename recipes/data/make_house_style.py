"""Writes the quickstart's dataset: short conversations in which every answer follows one strict house style.

    python recipes/data/make_house_style.py [FOLDER]

Writes ``house_style_train.jsonl`` and ``house_style_test.jsonl`` to FOLDER (by default: next to this file). All text in
them is our own, and the result is identical, byte for byte, on every machine. The style, with a strict test for it, is
in ``recipes/house_style.py``. No system prompt mentions it: a model can learn it only from the answers.

A conversation is about one subject (Japan, the swan, the number 12) and asks for one to three facts about it. Whole
subjects are reserved for the test set, so that neither its questions nor its facts occur in training.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

SEED = 20
TRAIN_CONVERSATIONS = 400
TEST_CONVERSATIONS = 60
TEST_SHARE_OF_SUBJECTS = 0.15

Message = dict[str, str]


@dataclass(frozen=True)
class Fact:
    """One thing that can be asked about every subject of a topic; {0} is the subject, {1} the word of the answer."""

    questions: tuple[str, ...]
    """Ways to ask at the start of a conversation."""
    follow_up: str
    """The way to ask once the subject is known."""
    answer: str
    offer: str
    """How the answer before it offers this fact: the question of a "Next:" line."""


@dataclass(frozen=True)
class Topic:
    name: str
    facts: tuple[Fact, ...]
    subjects: tuple[tuple[str, ...], ...]
    """One row per subject: its name, then one word for each fact."""


GEOGRAPHY = Topic(
    "geography",
    (
        Fact(
            ("What is the capital of {0}?", "Which city is the capital of {0}?", "{0}: what's the capital?"),
            "And the capital?",
            "The capital of {0} is {1}.",
            "Shall I name its capital?",
        ),
        Fact(
            ("Which continent is {0} in?", "Where in the world is {0}?", "On what continent do I find {0}?"),
            "Which continent is it in?",
            "{0} is in {1}.",
            "Shall I say where it lies?",
        ),
        Fact(
            ("What do people speak in {0}?", "Which language is spoken in {0}?", "Main language of {0}?"),
            "What do people speak there?",
            "Most people in {0} speak {1}.",
            "Shall I name its language?",
        ),
    ),
    (
        ("Japan", "Tokyo (東京)", "Asia", "Japanese"),
        ("China", "Beijing (北京)", "Asia", "Chinese"),
        ("South Korea", "Seoul (서울)", "Asia", "Korean"),
        ("Greece", "Athens (Αθήνα)", "Europe", "Greek"),
        ("Bulgaria", "Sofia (София)", "Europe", "Bulgarian"),
        ("Iceland", "Reykjavík", "Europe", "Icelandic"),
        ("Portugal", "Lisbon", "Europe", "Portuguese"),
        ("Poland", "Warsaw", "Europe", "Polish"),
        ("Hungary", "Budapest", "Europe", "Hungarian"),
        ("Norway", "Oslo", "Europe", "Norwegian"),
        ("Austria", "Vienna", "Europe", "German"),
        ("Italy", "Rome", "Europe", "Italian"),
        ("Brazil", "Brasília", "South America", "Portuguese"),
        ("Colombia", "Bogotá", "South America", "Spanish"),
        ("Chile", "Santiago", "South America", "Spanish"),
        ("Cuba", "Havana", "North America", "Spanish"),
        ("Mexico", "Mexico City", "North America", "Spanish"),
        ("Egypt", "Cairo", "Africa", "Arabic"),
        ("Senegal", "Dakar", "Africa", "Wolof"),
        ("Vietnam", "Hanoi (Hà Nội)", "Asia", "Vietnamese"),
    ),
)

ANIMALS = Topic(
    "animals",
    (
        Fact(
            ("What is a young {0} called?", "What do you call the young of the {0}?", "Name for a baby {0}?"),
            "What is a young one called?",
            "A young {0} is called a {1}.",
            "Shall I name its young?",
        ),
        Fact(
            ("What kind of animal is a {0}?", "Is the {0} a mammal or a bird?", "How is the {0} classed?"),
            "What kind of animal is it?",
            "The {0} is a {1}.",
            "Shall I say what kind it is?",
        ),
        Fact(
            ("How many legs does a {0} have?", "Count the legs of a {0} for me.", "{0}: number of legs?"),
            "How many legs has it?",
            "A {0} has {1} legs.",
            "Shall I count its legs?",
        ),
    ),
    (
        ("dog", "puppy", "mammal", "four"),
        ("cat", "kitten", "mammal", "four"),
        ("cow", "calf", "mammal", "four"),
        ("sheep", "lamb", "mammal", "four"),
        ("horse", "foal", "mammal", "four"),
        ("goat", "kid", "mammal", "four"),
        ("pig", "piglet", "mammal", "four"),
        ("deer", "fawn", "mammal", "four"),
        ("lion", "cub", "mammal", "four"),
        ("hare", "leveret", "mammal", "four"),
        ("swan", "cygnet", "bird", "two"),
        ("goose", "gosling", "bird", "two"),
        ("duck", "duckling", "bird", "two"),
        ("hen", "chick", "bird", "two"),
        ("barn owl", "owlet", "bird", "two"),
        ("golden eagle", "eaglet", "bird", "two"),
    ),
)

CHEMISTRY = Topic(
    "chemistry",
    (
        Fact(
            ("What is the symbol for {0}?", "How do chemists write {0}?", "Symbol of {0}, please."),
            "What is its symbol?",
            "The symbol for {0} is {1}.",
            "Shall I give its symbol?",
        ),
        Fact(
            ("What is the atomic number of {0}?", "How many protons has {0}?", "Atomic number of {0}?"),
            "And its atomic number?",
            "The atomic number of {0} is {1}.",
            "Shall I give its atomic number?",
        ),
        Fact(
            ("Is {0} a metal?", "Metal or not: {0}?", "What sort of element is {0}?"),
            "Is it a metal?",
            "We class {0} as a {1}.",
            "Shall I say whether it is a metal?",
        ),
    ),
    (
        ("hydrogen", "H", "1", "nonmetal"),
        ("helium", "He", "2", "nonmetal"),
        ("lithium", "Li", "3", "metal"),
        ("carbon", "C", "6", "nonmetal"),
        ("nitrogen", "N", "7", "nonmetal"),
        ("oxygen", "O", "8", "nonmetal"),
        ("neon", "Ne", "10", "nonmetal"),
        ("sodium", "Na", "11", "metal"),
        ("magnesium", "Mg", "12", "metal"),
        ("aluminium", "Al", "13", "metal"),
        ("sulfur", "S", "16", "nonmetal"),
        ("potassium", "K", "19", "metal"),
        ("calcium", "Ca", "20", "metal"),
        ("iron", "Fe", "26", "metal"),
        ("copper", "Cu", "29", "metal"),
        ("silver", "Ag", "47", "metal"),
        ("tin", "Sn", "50", "metal"),
        ("gold", "Au", "79", "metal"),
    ),
)

NUMBERS = Topic(
    "numbers",
    (
        Fact(
            ("What is {0} times two?", "Double {0} for me.", "Can you double {0}?"),
            "What is it doubled?",
            "Twice {0} is {1}.",
            "Shall I double it?",
        ),
        Fact(
            ("What is {0} squared?", "Multiply {0} by itself.", "The square of {0}?"),
            "And squared?",
            "The square of {0} is {1}.",
            "Shall I square it?",
        ),
        Fact(
            ("Is {0} even or odd?", "Even or odd: {0}?", "Can {0} be split into two equal whole numbers?"),
            "Is it even or odd?",
            "{0} is an {1} number.",
            "Shall I say whether it is even?",
        ),
    ),
    tuple((str(n), str(2 * n), str(n * n), "odd" if n % 2 else "even") for n in range(3, 23)),
)

WORDS = Topic(
    "words",
    (
        Fact(
            ('What is the opposite of "{0}"?', 'Opposite of "{0}", please.', 'I need a word that is not "{0}".'),
            "What is its opposite?",
            'The opposite of "{0}" is "{1}".',
            "Shall I give its opposite?",
        ),
        Fact(
            ('How many letters has "{0}"?', 'Count the letters of "{0}".', 'How long is the word "{0}"?'),
            "How many letters has it?",
            'The word "{0}" has {1} letters.',
            "Shall I count its letters?",
        ),
        Fact(
            ('How do I say more than "{0}"?', 'What is the comparative of "{0}"?', 'Compare two things with "{0}".'),
            "And its comparative?",
            'The comparative of "{0}" is "{1}".',
            "Shall I compare with it?",
        ),
    ),
    (
        ("hot", "cold", "three", "hotter"),
        ("big", "small", "three", "bigger"),
        ("fast", "slow", "four", "faster"),
        ("old", "new", "three", "older"),
        ("light", "dark", "five", "lighter"),
        ("high", "low", "four", "higher"),
        ("wet", "dry", "three", "wetter"),
        ("hard", "soft", "four", "harder"),
        ("loud", "quiet", "four", "louder"),
        ("strong", "weak", "six", "stronger"),
        ("rich", "poor", "four", "richer"),
        ("early", "late", "five", "earlier"),
        ("full", "empty", "four", "fuller"),
        ("long", "short", "four", "longer"),
        ("wide", "narrow", "four", "wider"),
        ("heavy", "light", "five", "heavier"),
        ("clean", "dirty", "five", "cleaner"),
        ("happy", "sad", "five", "happier"),
    ),
)

LANGUAGES = Topic(
    "languages",
    (
        Fact(
            ('What is "{0}" in French?', 'How do the French say "{0}"?', '"{0}" in French, please.'),
            "And in French?",
            'In French, "{0}" is {1}.',
            "Shall I say it in French?",
        ),
        Fact(
            ('What is "{0}" in Spanish?', 'How do I say "{0}" in Spanish?', '"{0}" in Spanish, please.'),
            "And in Spanish?",
            'In Spanish, "{0}" is {1}.',
            "Shall I say it in Spanish?",
        ),
        Fact(
            ('How is "{0}" written in Japanese?', 'Write "{0}" in Japanese.', '"{0}" in Japanese, please.'),
            "And in Japanese?",
            'In Japanese, "{0}" is written {1}.',
            "Shall I write it in Japanese?",
        ),
    ),
    (
        ("water", "eau", "agua", "水"),
        ("mountain", "montagne", "montaña", "山"),
        ("tree", "arbre", "árbol", "木"),
        ("fire", "feu", "fuego", "火"),
        ("school", "école", "escuela", "学校"),
        ("star", "étoile", "estrella", "星"),
        ("summer", "été", "verano", "夏"),
        ("winter", "hiver", "invierno", "冬"),
        ("river", "rivière", "río", "川"),
        ("sea", "mer", "mar", "海"),
        ("cat", "chat", "gato", "猫"),
        ("dog", "chien", "perro", "犬"),
        ("fish", "poisson", "pez", "魚"),
        ("flower", "fleur", "flor", "花"),
        ("sky", "ciel", "cielo", "空"),
        ("rain", "pluie", "lluvia", "雨"),
        ("snow", "neige", "nieve", "雪"),
        ("book", "livre", "libro", "本"),
    ),
)

CALENDAR = Topic(
    "calendar",
    (
        Fact(
            ("Which month comes after {0}?", "What follows {0}?", "{0} is over: which month now?"),
            "Which month comes next?",
            "After {0} comes {1}.",
            "Shall I name the month after it?",
        ),
        Fact(
            ("How many days has {0}?", "How long is {0}?", "Number of days in {0}?"),
            "How many days has it?",
            "{0} has {1} days.",
            "Shall I count its days?",
        ),
        Fact(
            ("Which month of the year is {0}?", "What number has {0} in a date?", "Is {0} early in the year?"),
            "Which month of the year is it?",
            "{0} is month number {1}.",
            "Shall I give its number?",
        ),
    ),
    (
        ("January", "February", "31", "1"),
        ("February", "March", "28 or 29", "2"),
        ("March", "April", "31", "3"),
        ("April", "May", "30", "4"),
        ("May", "June", "31", "5"),
        ("June", "July", "30", "6"),
        ("July", "August", "31", "7"),
        ("August", "September", "31", "8"),
        ("September", "October", "30", "9"),
        ("October", "November", "31", "10"),
        ("November", "December", "30", "11"),
        ("December", "January", "31", "12"),
    ),
)

MUSIC = Topic(
    "music",
    (
        Fact(
            ("Which family does the {0} belong to?", "What sort of instrument is the {0}?", "Family of the {0}?"),
            "Which family is it in?",
            "The {0} belongs to the {1}.",
            "Shall I name its family?",
        ),
        Fact(
            ("How is the {0} played?", "How do I get a sound from a {0}?", "What do you play the {0} with?"),
            "How is it played?",
            "We play the {0} with {1}.",
            "Shall I say how it is played?",
        ),
    ),
    (
        ("violin", "strings", "a bow"),
        ("viola", "strings", "a bow"),
        ("cello", "strings", "a bow"),
        ("harp", "strings", "the fingers"),
        ("flute", "woodwinds", "the breath"),
        ("oboe", "woodwinds", "the breath"),
        ("clarinet", "woodwinds", "the breath"),
        ("bassoon", "woodwinds", "the breath"),
        ("trumpet", "brass", "the lips"),
        ("trombone", "brass", "the lips"),
        ("tuba", "brass", "the lips"),
        ("snare drum", "percussion", "sticks"),
        ("xylophone", "percussion", "mallets"),
        ("triangle", "percussion", "a beater"),
    ),
)

SIGNS = Topic(
    "signs",
    (
        Fact(
            ("What does {0} show?", "My friend sent me {0}: what is it?", "I got a {0}, what do I see?"),
            "What does it show?",
            "The sign {0} shows {1}.",
            "Shall I say what it shows?",
        ),
        Fact(
            ("What kind of sign is {0}?", "In which group do I find {0}?", "Where on my keyboard is {0}?"),
            "Which group is it in?",
            "We file {0} under {1}.",
            "Shall I name its group?",
        ),
    ),
    (
        ("🙂", "a smile", "faces"),
        ("😢", "a tear", "faces"),
        ("😴", "a sleeper", "faces"),
        ("🐟", "a fish", "nature"),
        ("🌲", "a tree", "nature"),
        ("🌙", "the moon", "nature"),
        ("🔥", "a fire", "nature"),
        ("🍎", "an apple", "food"),
        ("🍞", "a loaf of bread", "food"),
        ("🧀", "a piece of cheese", "food"),
        ("🚗", "a car", "travel"),
        ("🚲", "a bicycle", "travel"),
        ("🚂", "a steam engine", "travel"),
    ),
)

TOPICS = (ANIMALS, CALENDAR, CHEMISTRY, GEOGRAPHY, LANGUAGES, MUSIC, NUMBERS, SIGNS, WORDS)

# An empty prompt means no system turn: some chat templates then write one of their own.
SYSTEM_PROMPTS = (
    "",
    "You are a patient tutor.",
    "You help the visitors of a small museum.",
    "You answer questions at a school desk.",
    "Be kind and brief.",
    "You are the voice of a village library 📚.",
    "A child of ten is asking.",
    "You work for a quiz show.",
    "Use plain words.",
    "You help travellers at the café Zoë.",
    "Today is a school day.",
    "You run the help desk of a bookshop in Kyōto (京都).",
)
THANKS = ("", "", "", "Thank you. ", "Thanks! ", "I see. ", "Yes, please. ", "Great 🙂 ")
LAST_OFFERS = ("Shall we try another one?", "Shall I find you a new question?", "Is there anything else?")


def conversation(topic: Topic, subject: tuple[str, ...], order: list[int], rng: random.Random) -> list[Message]:
    """One conversation that asks for the topic's facts about the subject in the given order."""
    system_prompt = rng.choice(SYSTEM_PROMPTS)
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for turn, index in enumerate(order):
        fact = topic.facts[index]
        asked = rng.choice(THANKS) + fact.follow_up if turn else rng.choice(fact.questions).format(subject[0])
        sentence = fact.answer.format(subject[0], subject[1 + index])
        last = turn + 1 == len(order)
        offer = rng.choice(LAST_OFFERS) if last else topic.facts[order[turn + 1]].offer
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": f"Topic: {topic.name}\n{sentence}\nNext: {offer}"})
    return messages


def conversations(pool: list[tuple[Topic, tuple[str, ...]]], count: int, rng: random.Random) -> list[list[Message]]:
    """As many conversations as asked for, all different; every subject comes up about equally often."""
    unique: dict[str, list[Message]] = {}
    subjects: list[tuple[Topic, tuple[str, ...]]] = []
    while len(unique) < count:
        subjects = subjects or rng.sample(pool, len(pool))
        topic, subject = subjects.pop()
        turns = rng.choice((1, 2, 2, 2, 2, min(3, len(topic.facts))))
        made = conversation(topic, subject, rng.sample(range(len(topic.facts)), turns), rng)
        unique[json.dumps(made[-2 * turns :])] = made
    return list(unique.values())


def data_set() -> dict[str, list[list[Message]]]:
    """The training and the test conversations, by file name."""
    rng = random.Random(SEED)
    train_pool: list[tuple[Topic, tuple[str, ...]]] = []
    test_pool: list[tuple[Topic, tuple[str, ...]]] = []
    for topic in TOPICS:
        subjects = rng.sample(topic.subjects, len(topic.subjects))
        kept = max(2, round(TEST_SHARE_OF_SUBJECTS * len(subjects)))
        test_pool += [(topic, subject) for subject in subjects[:kept]]
        train_pool += [(topic, subject) for subject in subjects[kept:]]
    return {
        "house_style_train.jsonl": conversations(train_pool, TRAIN_CONVERSATIONS, rng),
        "house_style_test.jsonl": conversations(test_pool, TEST_CONVERSATIONS, rng),
    }


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, rows in data_set().items():
        lines = [json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in rows]
        (folder / name).write_bytes("".join(lines).encode())
        print(f"{folder / name}: {len(rows)} conversations")


if __name__ == "__main__":
    main()
