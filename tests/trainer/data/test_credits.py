"""Credits: named by the pictures themselves, or by the tables of a SOURCES.md."""

from dataclasses import replace
from pathlib import Path

from tests.trainer.data.fake_samples import fake_sample
from trainer.data.credits import credits_in_tables, credits_of
from trainer.data.sample import Credit
from trainer.data.sources import Source

TABLE = """
# Photos

Some | words | that are no table.

| file names begin | source (GitHub) | licence, where it was read | people |
|---|:---:|---|---:|
| `a_` | ann/hands | CC BY 4.0 – README | 3 |
| `b_` | bob | MIT | 1 |

| set | size |
|---|---|
| x | 3 |
"""


def test_rows_of_a_table_with_source_and_licence_are_credits_and_others_are_not() -> None:
    assert credits_in_tables(TABLE) == [Credit("ann/hands", "CC BY 4.0 – README", "ann"), Credit("bob", "MIT", "")]


def test_an_author_column_counts() -> None:
    text = "| repo | author | license |\n|---|---|---|\n| ann/hands | Ann B. | CC BY 4.0 |\n"
    assert credits_in_tables(text) == [Credit("ann/hands", "CC BY 4.0", "Ann B.")]


def test_pictures_that_name_their_source_come_before_the_table_of_their_set(tmp_path: Path) -> None:
    for name in ("named", "unnamed", "unused"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "SOURCES.md").write_text(TABLE.replace("ann/hands", f"{name}/hands"))
    zoe = Credit("zoe/hands", "CC0", "zoe")
    samples = [replace(fake_sample(source="named"), credit=zoe), fake_sample(source="unnamed")]
    sources = [Source("coco", tmp_path / name) for name in ("named", "unnamed", "unused")]

    found = credits_of(samples, sources)
    assert [credit.source for credit in found] == ["bob", "unnamed/hands", "zoe/hands"]
