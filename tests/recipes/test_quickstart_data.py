"""The quickstart's data set: reproducible, in the house style without exception, and held out for real."""

import json
from pathlib import Path

import make_house_style
import pytest
from house_style import TOPICS, follows_house_style

DATA = Path(make_house_style.__file__).parent
TRAIN, TEST = "house_style_train.jsonl", "house_style_test.jsonl"


def conversations(name):
    return [json.loads(line)["messages"] for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def said_by(role, rows):
    return [message["content"] for row in rows for message in row if message["role"] == role]


def opening_questions(rows):
    return {next(message["content"] for message in row if message["role"] == "user") for row in rows}


def sentences(rows):
    return {answer.splitlines()[1] for answer in said_by("assistant", rows)}


def test_generator_reproduces_the_shipped_files_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_house_style.py", str(tmp_path)])
    make_house_style.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == [TEST, TRAIN]
    for name in (TRAIN, TEST):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes()


@pytest.mark.parametrize(("name", "rows"), [(TRAIN, 400), (TEST, 60)])
def test_every_answer_follows_the_house_style(name, rows):
    answers = said_by("assistant", conversations(name))
    assert len(conversations(name)) == rows
    assert len(answers) > rows
    assert [answer for answer in answers if not follows_house_style(answer)] == []
    assert {answer.splitlines()[0].removeprefix("Topic: ") for answer in answers} == set(TOPICS)


@pytest.mark.parametrize("name", [TRAIN, TEST])
def test_roles_alternate_and_the_assistant_has_the_last_word(name):
    for messages in conversations(name):
        roles = [message["role"] for message in messages]
        chat = roles[1:] if roles[0] == "system" else roles
        assert chat == ["user", "assistant"] * (len(chat) // 2)
        assert 1 <= len(chat) // 2 <= 3


def test_conversations_vary_in_turns_system_prompts_and_scripts():
    rows = conversations(TRAIN)
    assert {sum(message["role"] == "user" for message in row) for row in rows} == {1, 2, 3}
    assert any(row[0]["role"] == "user" for row in rows)
    assert len(set(said_by("system", rows))) == 11
    answers = "".join(said_by("assistant", rows + conversations(TEST)))
    assert [piece for piece in ("東京", "🙂", "é", "水") if piece not in answers] == []


def test_no_prompt_gives_the_style_away():
    for name in (TRAIN, TEST):
        rows = conversations(name)
        prompts = said_by("system", rows) + said_by("user", rows)
        assert [prompt for prompt in prompts if "Topic:" in prompt or "Next:" in prompt] == []


def test_held_out_questions_and_facts_do_not_occur_in_training():
    train, test = conversations(TRAIN), conversations(TEST)
    assert len(opening_questions(test)) >= 40
    assert opening_questions(test) & opening_questions(train) == set()
    assert sentences(test) & sentences(train) == set()


def test_no_conversation_occurs_twice():
    rows = [json.dumps(row) for name in (TRAIN, TEST) for row in conversations(name)]
    assert len(set(rows)) == len(rows) == 460


GOOD = "Topic: geography\nThe capital of Japan is Tokyo (東京).\nNext: Shall I name its language?"


def test_the_style_accepts_its_own_example():
    assert follows_house_style(GOOD)


@pytest.mark.parametrize(
    "near_miss",
    [
        "",
        GOOD + "\n",
        " " + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("geography", "history"),
        GOOD.replace("geography", "Geography"),
        GOOD.replace("Topic: geography\n", ""),
        GOOD.replace("Topic:", "Subject:"),
        GOOD.replace("(東京).", "(東京)"),
        GOOD.replace("(東京).", "(東京). It is big."),
        GOOD.replace("\nNext", "\n\nNext"),
        GOOD.replace("Next: ", ""),
        GOOD.replace("Next: Shall", "Next: shall"),
        GOOD.removesuffix("?"),
        GOOD.removesuffix("?") + ".",
        GOOD + " Or its flag?",
        GOOD + "\nTopic: geography",
        GOOD + GOOD,
    ],
)
def test_the_style_rejects_a_near_miss(near_miss):
    assert not follows_house_style(near_miss)
