"""Author and year as a reference's label in the bibliography, as the text cites it."""

from collections import Counter
from collections.abc import Iterable, Iterator

from pybtex.database import Entry, Person
from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.plain import Style as Plain
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.template import field, sentence


def surname(person: Person) -> str:
    return str(Text.from_latex(" ".join([*person.prelast_names, *person.last_names])))


class AuthorYear(BaseLabelStyle):
    """ "Liu et al., 2023"; two works of one year get a and b."""

    def format_labels(self, entries: Iterable[Entry]) -> Iterator[str]:
        entries = list(entries)
        labels = [self.label(entry) for entry in entries]
        total, seen = Counter(labels), Counter()
        for label in labels:
            seen[label] += 1
            yield label + ("abcdefgh"[seen[label] - 1] if total[label] > 1 else "")

    def label(self, entry: Entry) -> str:
        names = [surname(person) for person in entry.persons.get("author", [])]
        said = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        return f"{said}, {entry.fields.get('year', '')}"


class Style(Plain):
    """The plain style with these labels, and with titles as they are written: a lower-case Δ would
    be another symbol."""

    default_label_style = AuthorYear

    def format_title(self, entry: Entry, which_field: str, as_sentence: bool = True) -> object:
        title = field(which_field)
        return sentence[title] if as_sentence else title


def setup() -> None:
    register_plugin("pybtex.style.formatting", "author_year", Style)
