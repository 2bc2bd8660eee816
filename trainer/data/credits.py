"""Whom a model has to name: sources, licences and authors of the pictures it was trained on.

A set names them by image (`source`, `licence`, `author` in its COCO file), or in a `SOURCES.md` in its folder, whose
tables have a column for the source (or repo), one for the licence and perhaps one for the author.
"""

from collections.abc import Iterable, Sequence

from trainer.data.sample import Credit, Pictured
from trainer.data.sources import Source

FILE_NAME = "SOURCES.md"


def credits_of(samples: Sequence[Pictured], sources: Iterable[Source]) -> tuple[Credit, ...]:
    """Distinct credits of these samples, which were read from these sources, in order.

    The tables of a `SOURCES.md` count for a set of which no picture names its own source.
    """
    found = {sample.credit for sample in samples if sample.credit is not None}
    credited = {sample.source for sample in samples if sample.credit is not None}
    used = {sample.source for sample in samples}
    for source in sources:
        folder = source.path if source.path.is_dir() else source.path.parent
        if folder.name in used - credited and (folder / FILE_NAME).is_file():
            found.update(credits_in_tables((folder / FILE_NAME).read_text(encoding="utf-8")))
    return tuple(sorted(found))


def credits_in_tables(markdown: str) -> list[Credit]:
    """The credits in the tables of a Markdown text; none where no table has a source and a licence."""
    found: list[Credit] = []
    columns: dict[str, int] = {}
    for line in markdown.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if not line.lstrip().startswith("|"):
            columns = {}
        elif not columns:
            columns = _columns(cells)
        elif {"source", "licence"} <= columns.keys() and len(cells) > max(columns.values()) and set(line) - set("|-: "):
            source, licence = cells[columns["source"]], cells[columns["licence"]]
            author = cells[columns["author"]] if "author" in columns else ""
            found.append(Credit(source, licence, author or source.rpartition("/")[0]))
    return found


def _columns(head: Sequence[str]) -> dict[str, int]:
    """Places of the columns by what they hold; {"": 0} for a table without any of them."""
    words = {"source": ("source", "repo"), "licence": ("licen",), "author": ("author",)}
    places = {
        name: place
        for name, beginnings in words.items()
        for place, cell in reversed(list(enumerate(head)))
        if cell.lower().startswith(beginnings)
    }
    return places or {"": 0}
