"""Run records: what a run was trained on, and whom its weights have to name, is kept from run to run."""

from dataclasses import replace
from pathlib import Path

from tests.trainer.data.fake_samples import fake_sample
from trainer import run_record
from trainer.configs import load_config
from trainer.data.sample import Credit
from trainer.data.sources import Source, WeightedSamples

ANN, BOB = Credit("ann/hands", "CC BY 4.0", "ann"), Credit("bob/hands", "MIT", "bob")


def record(credit: Credit, name: str = "1.png") -> run_record.RunRecord:
    sample = replace(fake_sample(name=name), credit=credit)
    sources = [Source("coco", Path("fake"), 57.0, is_share=True)]
    return run_record.record_of(
        load_config("photos"), sources, WeightedSamples((sample,), (1.0,)), WeightedSamples((), ()), skip_bad=False
    )


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    before = record(ANN)
    run_record.write(before, tmp_path)
    assert run_record.read(tmp_path) == before
    assert before.credits == (ANN,)
    assert [Source.parse(text) for text in before.sources] == [Source("coco", Path("fake"), 57.0, is_share=True)]


def test_a_run_that_starts_from_another_names_the_pictures_of_both(tmp_path: Path) -> None:
    run_record.write(record(ANN), tmp_path / "first")
    after = run_record.started_from(record(BOB, "2.png"), tmp_path / "first")
    assert after.credits == (ANN, BOB)
    assert after.trained_on == {("fake", "1.png"), ("fake", "2.png")}
