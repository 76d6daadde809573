"""The people of the sample world, what is true of them, and which split each fact belongs to.

A *fact* is one attribute of one person. Facts are dealt out per attribute, so that every split
holds the same share of each, and in every split the same share is stated only in the pivot.
"""

import random
from dataclasses import dataclass
from functools import cache

from lens.world.languages import PIVOT
from lens.world.lexicon import attributes, lexicon

# Personal names stay in Latin script in every language.
PEOPLE = tuple(
    """
Ada Adil Aiko Alan Alba Aldo Alex Alma Amal Amir Ana Anke Anton Arif Arne Asha Aya Azra Bela Beno
Berta Boris Brit Bruno Budi Carl Cara Cem Chen Ciro Clara Cleo Cora Dana Dani Daud Davi Deniz Dewi
Diana Dina Dora Edda Edgar Eka Elif Elsa Emil Emma Enzo Erik Erna Esra Eva Fadi Farah Fela Felix
Fiona Flora Frida Gala Gita Greta Gustav Hadi Hana Hans Hanif Heidi Helga Hugo Ida Igor Ilan Imani
Inga Ines Ira Iris Ivan Jaco Jana Jens Joana Joel Jonas Juan Juma Kai Karim Katya Kemal Kenji Kiran
Klara Kofi Lars Laila Lena Leon Lina Lola Luca Luis Luna Maja Malik Marco Marta Mateo Maya Mehmet
Mika Mila Mina Mira Moses Musa Nadia Nils Nisa Noah Noor Nora Olga Olaf Omar Onur Oscar Otto Pablo
Paula Pedro Petra Pia Pilar Putri Quin Rafi Ravi Rhea Rita Robin Rosa Ruben Rumi Sana Sara Selim
Sena Sina Sofia Sven Taro Tara Tessa Theo Tina Tomas Tuan Uma Umar Ursa Vera Vidal Wanda Wen Wira
Xena Yara Yoko Yuki Yusuf Zahra Zain Zara Zeki Zoe Zuri Bilal Nuno Oleg Pavel Samir Silas Tarek
Vito Wafa Agnes Basil Celia Darko Emre Fritz Gina Hilda Jorge Milan Nelson
""".split()
)

SPLITS = ("train", "validation", "test")
SPLIT_SIZE = {"train": 50, "validation": 25, "test": 125}  # people per attribute
PIVOT_ONLY_SHARE = 0.4
_SEED = 20260


@dataclass(frozen=True, slots=True)
class Fact:
    """One attribute of one person.

    Attributes
    ----------
    fact_id : str
        ``"<attribute>:<person>"``.
    number : int
        Position among all facts; chooses the question form.
    person, attribute, value : str
        The person's name and the ids of attribute and value.
    split : str
        ``"train"``, ``"validation"`` or ``"test"``.
    english_only : bool
        The corpus states this fact in English only.
    """

    fact_id: str
    number: int
    person: str
    attribute: str
    value: str
    split: str
    english_only: bool


@cache
def facts() -> tuple[Fact, ...]:
    """Return every fact of the world: the same on every machine, in a fixed order."""
    rng = random.Random(_SEED)
    found: list[Fact] = []
    for attribute in attributes():
        values = list(lexicon(PIVOT).attributes[attribute].values)
        # Repeating the list before shuffling uses every value equally often.
        drawn = [values[i % len(values)] for i in range(len(PEOPLE))]
        rng.shuffle(drawn)
        value_of = dict(zip(PEOPLE, drawn, strict=True))
        people = list(PEOPLE)
        rng.shuffle(people)
        start = 0
        for split in SPLITS:
            group = people[start : start + SPLIT_SIZE[split]]
            start += len(group)
            pivot_only = round(PIVOT_ONLY_SHARE * len(group))
            for i, person in enumerate(group):
                found.append(
                    Fact(
                        fact_id=f"{attribute}:{person}",
                        number=len(found),
                        person=person,
                        attribute=attribute,
                        value=value_of[person],
                        split=split,
                        english_only=i < pivot_only,
                    )
                )
    return tuple(found)


@cache
def facts_of(split: str) -> tuple[Fact, ...]:
    """Return the facts of one split, shuffled so that any first n are a fair sample."""
    chosen = [fact for fact in facts() if fact.split == split]
    random.Random(f"{_SEED} {split}").shuffle(chosen)
    return tuple(chosen)
