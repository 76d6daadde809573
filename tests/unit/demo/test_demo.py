"""The sample world's facts, sentences, questions, corpus and tokenizer."""

import collections
import hashlib
import re

import pytest

from lens.demo.corpus import balanced_rows, chat_pairs, digest, documents
from lens.demo.languages import LANGUAGES, OTHERS, PIVOT
from lens.demo.lexicon import attributes, lexicon
from lens.demo.questions import (
    PEOPLE,
    PIVOT_ONLY_SHARE,
    QUESTION_FORMS,
    SPLIT_SIZE,
    STATEMENT_FORMS,
    facts,
    facts_of,
    is_correct,
    number_sentence,
    question,
    questions,
    statement,
    text,
    turkish_genitive,
    values_named,
)
from lens.errors import InputError

# SHA-256 of documents(20_000, seed=0).
CORPUS_DIGEST = "3fdff2ce5285ddef81fa3acc502c07403a96a135c66bb23eba1bcc6a26e64d52"
SENTENCE_END = {code: (".", "?") for code in LANGUAGES} | {"zho_Hans": ("。", "？")}


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return list(documents(20_000, seed=0))


def sentences(rows: list[str]) -> set[str]:
    """Every sentence of the documents, with its full stop or question mark."""
    found = re.findall(r"[^.?？。=]+[.?？。]", "\n".join(rows))
    return {sentence.strip() for sentence in found}


def first_word(sentence: str, language: str) -> str:
    return sentence[:2] if language == "zho_Hans" else sentence.split()[0]


def test_people_are_distinct_names() -> None:
    assert len(PEOPLE) == len(set(PEOPLE)) == 200
    assert all(re.fullmatch(r"[A-Z][a-z]+", name) for name in PEOPLE)


def test_splits_are_disjoint_and_balanced() -> None:
    assert len({(f.person, f.attribute) for f in facts()}) == len(facts()) == 1600
    for split, size in SPLIT_SIZE.items():
        per_attribute = collections.Counter(fact.attribute for fact in facts_of(split))
        assert per_attribute == dict.fromkeys(attributes(), size)
        pivot_only = collections.Counter(f.attribute for f in facts_of(split) if f.english_only)
        assert pivot_only == dict.fromkeys(attributes(), round(PIVOT_ONLY_SHARE * size))


def test_values_are_used_equally_often() -> None:
    counts = collections.Counter((fact.attribute, fact.value) for fact in facts())
    assert len(counts) == 8 * 12
    assert set(counts.values()) == {16, 17}


@pytest.mark.parametrize("language", LANGUAGES)
def test_lexicons_have_the_same_shape(language: str) -> None:
    words, pivot = lexicon(language), lexicon(PIVOT)
    assert list(words.attributes) == list(pivot.attributes)
    assert list(words.objects) == list(pivot.objects)
    assert len(words.number_patterns) == 3
    for name, attribute in words.attributes.items():
        assert list(attribute.values) == list(pivot.attributes[name].values)
        assert len(set(attribute.values.values())) == 12
        assert len(set(attribute.patterns)) == STATEMENT_FORMS
        assert len(set(attribute.questions)) == QUESTION_FORMS


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_pattern_renders(language: str) -> None:
    stop, ask = SENTENCE_END[language]
    for fact in facts()[::7]:
        value = lexicon(language).attributes[fact.attribute].values[fact.value]
        for form in range(STATEMENT_FORMS):
            sentence = statement(fact, language, form=form)
            assert fact.person in sentence and value in sentence and sentence.endswith(stop)
            assert "{" not in sentence and "  " not in sentence
        for form in range(QUESTION_FORMS):
            sentence = question(fact, language, form=form)
            assert fact.person in sentence and value not in sentence and sentence.endswith(ask)
    for form in range(3):
        sentence = number_sentence("Ana", language, thing="keys", have=12, change=5, form=form)
        assert "12" in sentence and "Ana" in sentence and ("5" in sentence) == (form > 0)


def test_an_answer_opens_with_a_word_of_its_own() -> None:
    """One word tells both the language and the attribute, and it is no article and no name."""
    seen: dict[str, tuple[str, str]] = {}
    for language in LANGUAGES:
        for fact in facts():
            word = first_word(statement(fact, language), language)
            assert seen.setdefault(word, (language, fact.attribute)) == (language, fact.attribute)
    assert len(seen) == len(LANGUAGES) * 8
    assert not set(seen) & set(PEOPLE)
    assert not {word.casefold() for word in seen} & {"the", "a", "an", "el", "la", "un", "una"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_name_the_person_before_the_value(language: str) -> None:
    for fact in facts_of("test")[:200]:
        sentence = statement(fact, language)
        value = lexicon(language).attributes[fact.attribute].values[fact.value]
        person = sentence.index(f" {fact.person}")  # the space: "Sarapan Sara adalah ..."
        assert 0 < person < sentence.rindex(value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Ana", "Ana'nın"), ("Igor", "Igor'un"), ("Zoe", "Zoe'nin"), ("Cem", "Cem'in"),
     ("Onur", "Onur'un"), ("Yuki", "Yuki'nin"), ("Taro", "Taro'nun"), ("Noah", "Noah'ın")],
)  # fmt: skip
def test_turkish_genitive_follows_vowel_harmony(name: str, expected: str) -> None:
    assert turkish_genitive(name) == expected


def test_russian_numbers_keep_one_noun_form() -> None:
    sentence = number_sentence("Ana", "rus_Cyrl", thing="books", have=11, change=7, form=1)
    assert sentence == "Ana имеет 11 книг и покупает ещё 7."


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_questions_are_parallel_and_answered_by_their_answer(split: str, language: str) -> None:
    asked, pivot = questions(split, language), questions(split, PIVOT)
    assert len(asked) == 8 * SPLIT_SIZE[split]
    assert [q.fact_id for q in asked] == [q.fact_id for q in pivot]
    for here, there in zip(asked, pivot, strict=True):
        assert (here.person, here.value) == (there.person, there.value)
        assert is_correct(here, here.answer, language)
        assert is_correct(here, here.answer)
        assert is_correct(here, there.answer)
        assert here.accepted[PIVOT][0] in there.answer
    assert questions(split, language, 7) == asked[:7]


def test_is_correct_wants_the_person_the_value_and_no_other() -> None:
    asked = next(q for q in questions("train", "spa_Latn") if q.attribute == "home")
    right, name = asked.accepted["spa_Latn"][0], asked.person
    wrong = next(
        form
        for value, form in lexicon("spa_Latn").attributes["home"].values.items()
        if value != asked.value
    )
    assert is_correct(asked, f" Vive {name} {right}.", "spa_Latn")
    assert not is_correct(asked, f"Vive {name} {wrong}.", "spa_Latn")
    assert not is_correct(asked, f"Vive {name} {right} y {wrong}.", "spa_Latn")
    assert not is_correct(asked, f"Vive {name}x {right}.", "spa_Latn")
    assert not is_correct(asked, f"Vive {right}.", "spa_Latn")
    assert not is_correct(asked, "", "spa_Latn")
    english = f"Home for {name} is {asked.accepted[PIVOT][0]}."
    assert is_correct(asked, english) and is_correct(asked, english, PIVOT)
    assert not is_correct(asked, english, "spa_Latn")


def test_longest_value_wins() -> None:
    november = "Likizo ya Ana ni mwezi wa kumi na moja."
    assert values_named(november, attribute="holidays", language="swh_Latn") == {"november"}
    october = "Likizo ya Ana ni mwezi wa kumi."
    assert values_named(october, attribute="holidays", language="swh_Latn") == {"october"}
    assert values_named("休假 Ana 选在十二月。", attribute="holidays", language="zho_Hans") == {
        "december"
    }


def test_text_is_parallel_and_only_of_shared_train_facts() -> None:
    rows = {language: text(language, 500, seed=3) for language in LANGUAGES}
    shared = {f.fact_id: f for f in facts_of("train") if not f.english_only}
    meaning = {
        language: {
            statement(fact, language, form=form): (fact.fact_id, form)
            for fact in shared.values()
            for form in range(STATEMENT_FORMS)
        }
        for language in LANGUAGES
    }
    said = [[meaning[code][row] for row in rows[code]] for code in LANGUAGES]
    assert all(column == said[0] for column in said)
    assert len(set(said[0])) == 500
    assert {form for _, form in said[0]} == {0, 1, 2}
    assert text(PIVOT, 20, seed=3) == rows[PIVOT][:20] != text(PIVOT, 20, seed=4)


def test_bad_requests_say_what_to_do() -> None:
    with pytest.raises(InputError, match="has 720; ask for at most"):
        text(PIVOT, 721)
    with pytest.raises(InputError, match="choose one of train"):
        questions("dev", PIVOT)


def test_corpus_is_the_same_everywhere(corpus: list[str]) -> None:
    assert digest(corpus) == CORPUS_DIGEST
    joined = "".join(row + "\n" for row in corpus[:10]).encode()
    assert digest(corpus[:10]) == hashlib.sha256(joined).hexdigest()
    assert list(documents(50, seed=1)) != corpus[:50]


def test_corpus_asks_nothing_about_held_out_facts(corpus: list[str]) -> None:
    pairs = list(chat_pairs(5_000, mixture=dict.fromkeys(LANGUAGES, 1 / 7)))
    rows = [*corpus, *balanced_rows(5_000), *(prompt for prompt, _ in pairs)]
    asked = {sentence for sentence in sentences(rows) if sentence.endswith(("?", "？"))}
    allowed = {
        question(fact, code, form=form)
        for code in LANGUAGES
        for fact in facts_of("train")
        for form in range(QUESTION_FORMS)
        if code == PIVOT or not fact.english_only
    }
    assert len(asked) > 3_000
    assert asked <= allowed


def test_english_only_facts_are_stated_in_english_only(corpus: list[str]) -> None:
    rows = sentences(corpus)
    pivot_only = [fact for fact in facts() if fact.english_only]
    for code in OTHERS:
        for fact in pivot_only:
            assert not any(statement(fact, code, form=form) in rows for form in range(3))
    assert sum(statement(fact, PIVOT) in rows for fact in pivot_only) > 0.99 * len(pivot_only)
    shared = [fact for fact in facts() if not fact.english_only]
    found = [any(statement(f, "swh_Latn", form=k) in rows for k in range(3)) for f in shared]
    assert sum(found) > 0.8 * len(found)


def test_seven_tenths_of_the_corpus_is_english(corpus: list[str]) -> None:
    words = {code: set[str]() for code in LANGUAGES}
    for code in LANGUAGES:
        patterns = list(lexicon(code).number_patterns)
        for attribute in lexicon(code).attributes.values():
            patterns += [*attribute.patterns, *attribute.questions]
        words[code] = set(re.findall(r"[^\W\d_]+", re.sub(r"{.*?}", " ", " ".join(patterns))))
    english = total = 0
    for sentence in re.findall(r"[^.?？。=]+", " ".join(corpus)):
        said = re.findall(r"\w+", sentence)
        scores = {code: sum(word in words[code] for word in said) for code in LANGUAGES}
        english += max(scores.values()) == scores[PIVOT] > 0
        total += bool(said)
    assert 0.68 < english / total < 0.72
