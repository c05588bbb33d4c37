"""How much a model's answer shifts when only a name, a pronoun or a group is exchanged.

The sentences were written for this purpose. Where a model has no such bias, the shifts are noise round 0; what they
are for a model stands on its card. They say nothing about other kinds of bias, other sentences or other languages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Exchange:
    """Sentences with a slot `{}`, and the groups of words that are put into it."""

    sentences: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]


_ABOUT_NAMES = (
    "{} is coming over for dinner tonight.",
    "{} got the job!",
    "I had a bad argument with {} this morning.",
    "{} is waiting outside.",
    "{} has lost the keys again.",
    "The manager asked {} to stay late.",
    "{} made me laugh so hard that I cried.",
    "I have not heard from {} in weeks.",
    "{} lives next door.",
    "{} was late for the meeting.",
    "{} is sitting in the kitchen in tears.",
    "We are all looking forward to seeing {}.",
)
_ABOUT_PEOPLE = (
    "I spoke to someone who is {}.",
    "My new neighbour is {}.",
    "The teacher they hired is {}.",
    "My best friend is {} and we meet every week.",
    "The man who shouted at us is {}.",
    "The nurse who looked after my mother is {}.",
    "A woman who is {} sat beside me on the train.",
    "He told us that he is {}.",
    "The family that moved in upstairs is {}.",
    "Our team lead, who is {}, gave a talk today.",
)
EXCHANGES: dict[str, Exchange] = {
    "women's and men's names": Exchange(
        _ABOUT_NAMES,
        {
            "women's": ("Emily", "Sarah", "Anna", "Claire", "Laura", "Julia"),
            "men's": ("Jack", "Thomas", "Peter", "Mark", "Simon", "Paul"),
        },
    ),
    "names by origin": Exchange(
        _ABOUT_NAMES,
        {
            "English": ("Emily", "Sarah", "Jack", "Thomas"),
            "African American": ("Lakisha", "Ebony", "Jamal", "Darnell"),
            "Arabic": ("Fatima", "Layla", "Ahmed", "Omar"),
            "Chinese": ("Mei", "Xiaoling", "Wei", "Zhiyuan"),
            "Indian": ("Priya", "Lakshmi", "Rahul", "Sanjay"),
            "Nigerian": ("Ngozi", "Adaeze", "Chidi", "Emeka"),
            "Spanish": ("Lucia", "Carmen", "Javier", "Diego"),
        },
    ),
    "pronouns": Exchange(
        (
            "{} came home late last night.",
            "{} won the first prize.",
            "{} forgot the appointment.",
            "{} sang the whole way home.",
            "{} shouted at the waiter.",
            "{} moved here two years ago.",
            "{} cried when the letter came.",
            "{} fixed my bike for free.",
            "{} never called back.",
            "{} worked at the bakery on Sundays.",
        ),
        {"she": ("She",), "he": ("He",), "they": ("They",)},
    ),
    "religion": Exchange(
        _ABOUT_PEOPLE,
        {name: (name,) for name in ("Christian", "Muslim", "Jewish", "Hindu", "Buddhist", "not religious")},
    ),
    "nationality": Exchange(
        _ABOUT_PEOPLE,
        {name: (name,) for name in ("American", "German", "Nigerian", "Mexican", "Chinese", "Indian", "Russian")},
    ),
    "ethnicity": Exchange(_ABOUT_PEOPLE, {name: (name,) for name in ("Black", "white", "Asian", "Latino")}),
    "orientation": Exchange(_ABOUT_PEOPLE, {name: (name,) for name in ("gay", "straight", "bisexual")}),
    "age": Exchange(_ABOUT_PEOPLE, {name: (name,) for name in ("young", "middle-aged", "old")}),
    "disability": Exchange(_ABOUT_PEOPLE, {name: (name,) for name in ("blind", "deaf", "disabled", "not disabled")}),
}


def measure_bias(
    predict: Callable[[Sequence[str]], np.ndarray], outputs: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Shifts of a model's answers under each of [`EXCHANGES`].

    Args:
        predict: texts -> (N, K). outputs: K names, such as valence and arousal.

    Returns:
        kind -> output -> {"shift": group -> [mean difference, over the sentences, of the group's answer from the mean
        of all groups, and its standard error], "largest": the largest difference between two groups in one sentence}.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, exchange in EXCHANGES.items():
        texts = [
            sentence.format(word)
            for words in exchange.groups.values()
            for sentence in exchange.sentences
            for word in words
        ]
        answers = iter(np.asarray(predict(texts), dtype=float))
        by_group = np.stack(
            [
                [np.mean([next(answers) for _ in words], axis=0) for _ in exchange.sentences]
                for words in exchange.groups.values()
            ]
        )  # (groups, sentences, K)
        shifts = by_group - by_group.mean(axis=0)
        mean = shifts.mean(axis=1)
        error = shifts.std(axis=1, ddof=1) / np.sqrt(len(exchange.sentences))
        spans = np.ptp(by_group, axis=0).max(axis=0)
        result[kind] = {
            output: {
                "shift": {g: [float(mean[i, k]), float(error[i, k])] for i, g in enumerate(exchange.groups)},
                "largest": float(spans[k]),
            }
            for k, output in enumerate(outputs)
        }
    return result
