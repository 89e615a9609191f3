"""Answers about plates from a real database: controls, onset, hits, doses, history, two models."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, update

from db.engine import open_reader
from db.schema import FieldScore, Image, Plate, WellTreatment
from sesmo_live import comparison, compounds, export, history, screens
from sesmo_live.errors import SesmoError, UsageError
from sesmo_live.records import Treatment
from sesmo_live.screening import percent_of_control, z_prime
from tests.cli import Sesmo, runner, sentence
from tests.figures import figure
from tests.planted import Fields, image_wells
from tests.stored import EC50_UM, START, WELLS_96, add_plate, add_scores, open_store, planted_96, plate_map_96

DAY = timedelta(days=1)
MODELS = ("mine-1-aaaaaaaa", "mine-2-bbbbbbbb")


@pytest.fixture
def sesmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sesmo:
    monkeypatch.chdir(tmp_path)
    return runner(capsys, monkeypatch)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Fields]]]:
    """Yield a database of two replicate plates, the first scored by two models, and what was planted in it."""
    path = tmp_path_factory.mktemp("screens") / "s.db"
    rng = np.random.default_rng(1)
    engine = open_store(path, MODELS)
    fields = {
        "P1": image_wells(rng, planted_96(), well_noise=0.12),
        "P2": image_wells(rng, planted_96(), well_noise=0.12),
        "P1 again": image_wells(rng, planted_96(top=0.6), well_noise=0.12),
    }
    first = add_plate(engine, "P1", WELLS_96, fields["P1"], plate_map_96())
    aliased = [replace(item, aliases=("VENDOR-7", "RYYVLZVUVIJVGH-UHFFFAOYSA-N")) for item in plate_map_96()]
    aliased = [item if item.compound == "Compound B" else replace(item, aliases=()) for item in aliased]
    add_plate(engine, "P2", WELLS_96, fields["P2"], aliased)
    add_scores(engine, first, fields["P1 again"], 2)
    yield path, fields
    engine.dispose()


def test_statistics_of_a_plate_equal_direct_computations(store: tuple[Path, dict[str, Fields]]) -> None:
    path, planted = store
    answer = screens.plate_statistics(open_reader(path), "P1", model="mine-1")
    means = planted["P1"].means()
    low = [number for number, well in enumerate(WELLS_96) if well.endswith("01")]
    high = [number for number, well in enumerate(WELLS_96) if well.endswith("12")]
    assert [row["timepoint"] for row in answer.rows] == [1, 2, 3, 4, 5, 6]
    for look, row in enumerate(answer.rows):
        assert row["z_prime"] == pytest.approx(z_prime(means[low, look], means[high, look]))
        assert (row["n_negative"], row["n_positive"]) == (8, 8)
    assert answer.rows[-1]["z_prime"] > 0.4
    wells = screens.plate_wells(open_reader(path), "p1", model="mine-1")
    assert tuple(wells.rows[0]) == screens.WELL_COLUMNS
    percent = percent_of_control(means[:, -1], means[low, -1], means[high, -1])
    for number, row in enumerate(wells.rows):
        assert row["well"] == WELLS_96[number]
        assert row["percent_of_control"] == pytest.approx(percent[number])
        assert row["fraction_low"] <= row["fraction_senescent"] <= row["fraction_high"]
        assert row["confluence"] == 0.25
    controls = [row["b_score"] for row in wells.rows if row["role"] != "treatment"]
    assert controls == [None] * 16


def test_percent_of_control_waits_until_the_positive_control_acts(store: tuple[Path, dict[str, Fields]]) -> None:
    early = screens.plate_wells(open_reader(store[0]), "P1", timepoint=1, model="mine-1")
    assert {row["percent_of_control"] for row in early.rows} == {None}
    assert any("standard errors, so percent of control would be noise" in note for note in early.notes)
    assert all(row["robust_z"] is not None for row in early.rows)


def test_onset_and_hours_since_treatment_over_the_change_of_clocks(store: tuple[Path, dict[str, Fields]]) -> None:
    """Treated at 16:00 UTC; imaged every 4 h through the night in which Berlin skips an hour: hours are UTC's."""
    answer = screens.plate_courses(open_reader(store[0]), "P1", model="mine-1")
    rows = {row["well"]: row for row in answer.rows}
    assert tuple(rows["A01"]) == screens.COURSE_COLUMNS
    strong = [rows[well] for well in ("H02", "H03", "G02", "H12")]
    found = {(row["onset_timepoint"], row["onset_hours"], row["direction"]) for row in strong}
    assert found <= {(3, 4.0, "rising"), (4, 8.0, "rising")}  # half of the effect is there at the third
    assert (rows["H02"]["compound"], rows["H02"]["dose"]) == ("Compound A", 30.0)
    idle = [row for row in answer.rows if row["compound"] in ("DMSO", "Compound C", "Compound D", "Compound E")]
    assert len(idle) == 56
    assert {row["onset_timepoint"] for row in idle} == {None}
    assert all(row["slope_low"] < row["slope_per_hour"] < row["slope_high"] for row in answer.rows)
    assert rows["H02"]["area_over_negative"] > 4 > rows["H11"]["area_over_negative"]
    one = screens.plate_courses(open_reader(store[0]), "P1", "h2", model="mine-1")
    assert [row["well"] for row in one.rows] == ["H02"]


def test_hits_are_ranked_and_replicates_strengthen_them(store: tuple[Path, dict[str, Fields]]) -> None:
    engine = open_reader(store[0])
    one = compounds.hits(engine, ["P1"], model="mine-1")
    two = compounds.hits(engine, ["P1", "P2"], model="mine-1")
    assert tuple(one.rows[0]) == compounds.HIT_COLUMNS
    assert [row["rank"] for row in one.rows] == list(range(1, 42))
    assert [row["q"] for row in one.rows] == sorted(row["q"] for row in one.rows)
    idle = ("Compound C", "Compound D", "Compound E")
    strong = {(name, f"{dose:g} µM") for name in ("Compound A", "Compound B") for dose in (3, 10, 30)}
    for answer, plates in ((one, 1), (two, 2)):
        called = {(row["compound"], row["dose"]): row for row in answer.rows if row["hit"]}
        assert strong <= called.keys()
        assert sum(name in idle for name, _ in called) <= 2
        assert {row["plates"] for row in answer.rows} == {plates}
    assert two.rows[1]["p"] < one.rows[1]["p"]
    figure(f"{sum(row['hit'] for row in one.rows)} hits on one plate, {sum(row['hit'] for row in two.rows)} on two")
    with pytest.raises(UsageError, match="scored by different models"):
        compounds.hits(engine, ["P1", "P2"])


def test_a_drug_that_kills_is_marked(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    fraction = np.where(np.arange(24) == 20, 0.02, 0.2)[:, None]
    fields = image_wells(rng, fraction, cells=120)
    dead = image_wells(rng, fraction[20:21], cells=10)
    for name in ("cells", "scores", "senescent"):
        getattr(fields, name)[20] = getattr(dead, name)[0]
    wells = WELLS_96[:24]
    treatments = [
        Treatment(well, "DMSO" if number < 16 else f"C{number}", "negative" if number < 16 else "treatment")
        for number, well in enumerate(wells)
    ]
    engine = open_store(tmp_path / "s.db")
    add_plate(engine, "P", wells, fields, treatments)
    answer = compounds.hits(engine, ["P"])
    assert [row["compound"] for row in answer.rows if row["toxic"]] == ["C20"]
    assert answer.rows[0]["compound"] == "C20"
    assert "1 of the hits have less than half of the negative controls' cells (toxic)" in answer.notes
    engine.dispose()


def test_killed_and_unseen_wells_and_missing_images_are_told_apart(tmp_path: Path) -> None:
    """Cells are counted an image: one that is out is no death. Compounds without cells or images are not ranked."""
    engine = open_store(tmp_path / "s.db")
    fields = image_wells(np.random.default_rng(3), planted_96(4))
    for number, well in enumerate(WELLS_96):
        if well in ("H02", "H03", "G02"):  # both wells of Compound A at 30 µM, one of those at 10 µM
            for array in (fields.cells, fields.scores, fields.senescent):
                array[number] = 0
    add_plate(engine, "P", WELLS_96, fields, plate_map_96())
    with engine.begin() as connection:
        out = update(Image).where(Image.well == "H08", Image.field > 0)
        connection.execute(out.values(excluded="a hair"))
        refused = update(Image).where(Image.well.in_(["H10", "H11"]), Image.timepoint == 4)
        connection.execute(refused.values(state="refused", reason="empty"))
    answer = compounds.hits(engine, ["P"])
    found = {(row["compound"], row["dose"]): row for row in answer.rows}
    assert len(found) == 39
    where = "plate P, time point 4: not ranked, since no"
    assert f"{where} cells are left to be scored (toxic?): Compound A 30 µM" in answer.notes
    assert f"{where} image of its wells is scored: Compound E 30 µM" in answer.notes
    assert found["Compound A", "10 µM"]["cells_percent"] == pytest.approx(50, abs=12)
    assert found["Compound D", "30 µM"]["cells_percent"] == pytest.approx(100, abs=25)  # one well has one image of four
    assert not found["Compound D", "30 µM"]["toxic"]
    with pytest.raises(UsageError, match="named twice"):
        compounds.hits(engine, ["P", "p"])
    engine.dispose()


def test_a_round_that_has_just_begun_is_not_taken_for_the_plate(tmp_path: Path, sesmo: Sesmo) -> None:
    engine = open_store(tmp_path / "s.db")
    add_plate(engine, "P", WELLS_96, image_wells(np.random.default_rng(3), planted_96(4)), plate_map_96())
    with engine.begin() as connection:
        late = update(Image).where(Image.timepoint == 4, Image.well > "A05")
        connection.execute(late.values(state="pending", reason="not scored yet"))
    note = "time point 4 is still being imaged (5 of 96 wells), so time point 3 is shown; see it all the same with"
    hits = compounds.hits(engine, ["P"])
    assert any(note in told for told in hits.notes)
    assert hits.rows == compounds.hits(engine, ["P"], timepoint=3).rows
    assert {row["timepoint"] for row in compounds.dose_responses(engine, "P").rows} == {3}
    assert screens.load_screen(engine, "P").index(None) == 2
    done = sesmo("plate", "P", "--statistics", "--db", tmp_path / "s.db")
    assert "no effects of rows, columns and rim at time point 4: 4 wells have a score" in done.err
    engine.dispose()


def test_wells_that_lack_the_same_are_told_in_one_sentence(tmp_path: Path) -> None:
    engine = open_store(tmp_path / "s.db")
    add_plate(engine, "P", WELLS_96, image_wells(np.random.default_rng(3), planted_96(2)), plate_map_96())
    told = [note for note in screens.plate_courses(engine, "P").notes if "slope" in note]
    assert told == ["no slope or area of A01, A02, A03 and 93 more wells: there are 2 hours and at least 3 are needed"]
    with engine.begin() as connection:  # a well beyond the declared plate
        connection.execute(update(Plate).values(wells=6))
    assert len(screens.plate_wells(engine, "P").rows) == 96
    engine.dispose()


def test_dose_responses_find_the_planted_ec50_and_call_the_idle_flat(store: tuple[Path, dict[str, Fields]]) -> None:
    engine = open_reader(store[0])
    answer = compounds.dose_responses(engine, "P1", model="mine-1")
    found = {row["compound"]: row for row in answer.rows}
    for name, ec50 in EC50_UM.items():
        assert found[name]["ec50_low"] < ec50 < found[name]["ec50_high"]
        assert found[name]["slope"] < 0  # rises with the dose
        assert (found[name]["doses"], found[name]["wells"]) == (9, 24)  # with the eight DMSO wells at zero
    assert [found[f"Compound {letter}"]["is_flat"] for letter in "CDE"] == [True] * 3
    assert found["Compound C"]["ec50"] is None
    over_time = compounds.compound_curves(engine, "vendor-7", model="mine-1", over_time=True)
    assert [(row["plate"], row["timepoint"]) for row in over_time.rows] == [
        (p, t) for p in ("P1", "P2") for t in range(1, 7)
    ]
    assert [row["is_flat"] for row in over_time.rows if row["plate"] == "P1"][2:] == [False] * 4


def test_a_compound_is_found_by_name_alias_and_inchikey(store: tuple[Path, dict[str, Fields]]) -> None:
    engine = open_reader(store[0])
    named = history.compound_history(engine, "COMPOUND B", model="mine-1")
    assert tuple(named.rows[0]) == history.HISTORY_COLUMNS
    assert len(named.rows) == 2 * 16 * 6
    assert [row["dose"] for row in named.rows[:2]] == [0.01, 0.01]
    for other in ("vendor-7", "ryyvlzvuvijvgh-uhfffaoysa-n", " RYYVLZVUVIJVGH-UHFFFAOYSA-N"):
        assert history.compound_history(engine, other, model="mine-1").rows == named.rows
    with pytest.raises(UsageError, match="did you mean 'Compound B'"):
        history.compound_history(engine, "Compund B")


def test_names_with_the_same_inchikey_are_one_substance(tmp_path: Path) -> None:
    engine = open_store(tmp_path / "s.db")
    caffeine, other = ("RYYVLZVUVIJVGH-UHFFFAOYSA-N",), ("ZFXYFBGIUFBOJW-UHFFFAOYSA-N", "xanthine")
    for plate, name, aliases in (("P", "Guaranine", caffeine), ("Q", "Caffeine", caffeine), ("R", "Theo", other)):
        fields = image_wells(np.random.default_rng(6), np.full((1, 1), 0.2))
        add_plate(engine, plate, ["A01"], fields, [Treatment("A01", name, "treatment", 1.0, "µM", 1.0, None, aliases)])
    for name in ("guaranine", "Caffeine", caffeine[0]):
        found = history.compound_history(engine, name).rows
        assert {(row["plate"], row["compound"]) for row in found} == {("P", "Guaranine"), ("Q", "Caffeine")}
    assert {row["plate"] for row in history.compound_history(engine, "theo").rows} == {"R"}
    engine.dispose()


def test_scores_of_different_models_are_bridged_and_never_mixed(store: tuple[Path, dict[str, Fields]]) -> None:
    engine = open_reader(store[0])
    last = history.compound_history(engine, "Compound B")
    assert {(row["plate"], row["model"]) for row in last.rows} == {("P1", MODELS[1])}
    assert any("1 plate that it did not score is left out" in note for note in last.notes)
    bridged = history.compound_history(engine, "Compound B", bridge=True)
    assert tuple(bridged.rows[0]) == history.BRIDGE_COLUMNS
    assert {(row["plate"], row["model"]) for row in bridged.rows} == {("P1", MODELS[1]), ("P2", MODELS[0])}
    late = {(row["plate"], row["well"]): row for row in bridged.rows if row["timepoint"] == 6}
    for well in ("H04", "H05"):  # the models differ by 0.06 at the top; in percent of control they agree
        first, second = late["P1", well], late["P2", well]
        assert first["percent_of_control"] == pytest.approx(100, abs=25)
        assert second["percent_of_control"] == pytest.approx(100, abs=25)
        assert (first["n_negative"], first["n_positive"]) == (8, 8)
        expected = 100 * (first["score"] - first["mean_negative"]) / (first["mean_positive"] - first["mean_negative"])
        assert first["percent_of_control"] == pytest.approx(expected)
    assert {row["percent_of_control"] for row in bridged.rows if row["timepoint"] == 1} == {None}
    assert f"model {MODELS[1]}: 1 of 1 plates bridged by their own control wells" in bridged.notes


def test_the_latest_model_is_the_one_that_scored_last(tmp_path: Path) -> None:
    """Everywhere, and not the one that was added last; a whole id is never taken for the beginning of another."""
    engine = open_store(tmp_path / "s.db", ("m-1", "m-10"))
    rng = np.random.default_rng(5)
    plate = add_plate(engine, "P", WELLS_96, image_wells(rng, planted_96(3)), plate_map_96())
    add_scores(engine, plate, image_wells(rng, planted_96(3)), 2)
    with engine.begin() as connection:
        connection.execute(update(FieldScore).where(FieldScore.model_id == 1).values(scored_at=START + DAY))
    assert {row["model"] for row in screens.plate_wells(engine, "P").rows} == {"m-1"}
    for bridge in (False, True):
        assert {row["model"] for row in history.compound_history(engine, "Compound A", bridge=bridge).rows} == {"m-1"}
    for ask in (screens.plate_wells, compounds.compound_curves, history.compound_history):
        of = "P" if ask is screens.plate_wells else "Compound A"
        assert {row["model"] for row in ask(engine, of, model="m-1").rows} == {"m-1"}
        assert {row["model"] for row in ask(engine, of, model="m-10").rows} == {"m-10"}
    for ask in (screens.plate_wells, history.compound_history):
        with pytest.raises(UsageError, match="'m-' is the beginning of several models, m-1, m-10"):
            ask(engine, "P" if ask is screens.plate_wells else "Compound A", model="m-")
    assert comparison.compare(engine, "m-1", "m-10").rows
    engine.dispose()


def test_two_models_are_compared_well_by_well(store: tuple[Path, dict[str, Fields]]) -> None:
    engine = open_reader(store[0])
    answer = comparison.compare(engine, "mine-1", "mine-2")
    assert len(answer.rows) == 96 * 6
    assert answer.rows[0]["score_a"] == pytest.approx(store[1]["P1"].means()[0, 0])
    assert answer.rows[0]["score_b"] == pytest.approx(store[1]["P1 again"].means()[0, 0])
    assert answer.notes[0] == f"A is {MODELS[0]}, B is {MODELS[1]}"
    assert "limits of agreement" in answer.notes[1]
    for a, b, plate, said in (
        ("mine", "mine-2", None, "the beginning of several models"),
        ("mine-1", "mine-1-a", None, "are one model"),
        ("mine-1", "other", None, "no model 'other' scored anything"),
        ("mine-1", "mine-2", "P2", "did not both score plate P2"),
    ):
        with pytest.raises(UsageError, match=said):
            comparison.compare(engine, a, b, plate=plate)


def test_a_plate_without_controls_says_what_cannot_be_computed(tmp_path: Path, sesmo: Sesmo) -> None:
    engine = open_store(tmp_path / "s.db")
    add_plate(engine, "P", WELLS_96[:24], image_wells(np.random.default_rng(3), np.full((24, 3), 0.2)))
    db = ("--db", tmp_path / "s.db")
    done = sesmo("plate", "P", "--statistics", "--format", "json", *db)
    rows = json.loads(done.out)
    assert [row["z_prime"] for row in rows] == [None] * 3
    assert "there are 0 negative control wells and at least 2 are needed" in done.err
    done = sesmo("plate", "P", "--format", "json", *db)
    assert {row["percent_of_control"] for row in json.loads(done.out)} == {None}
    assert all(row["b_score"] is not None for row in json.loads(done.out))
    assert "at least 3 are needed" in done.err
    done = sesmo("timecourse", "--plate", "P", "--onset", "--format", "json", *db)
    assert {row["onset_hours"] for row in json.loads(done.out)} == {None}
    assert "at least 4 are needed for a band" in done.err
    assert "plate P: there are 0 negative control wells" not in done.err
    assert sesmo("hits", "--plate", "P", *db).out.strip().endswith("(no rows)")
    engine.dispose()


def test_constant_scores_and_wells_without_cells_never_become_numbers(tmp_path: Path) -> None:
    engine = open_store(tmp_path / "s.db")
    ones = np.ones((96, 2, 2))
    add_plate(engine, "P", WELLS_96, Fields(60 * ones, 12 * ones, 6 * ones), plate_map_96())
    answer = screens.plate_wells(engine, "P")
    assert {(row["percent_of_control"], row["robust_z"], row["b_score"]) for row in answer.rows} == {(None, None, None)}
    assert any("do not vary" in note for note in answer.notes)
    # Wells of 0.3 from other numbers of cells differ by rounding alone; nothing may be made of that either.
    rounded = image_wells(np.random.default_rng(9), np.full((96, 2), 0.2), fields=2)
    add_plate(engine, "Q", WELLS_96, replace(rounded, scores=0.3 * rounded.cells), plate_map_96())
    assert len({row["score"] for row in screens.plate_wells(engine, "Q").rows}) > 1
    for row in (*screens.plate_wells(engine, "Q").rows, *screens.plate_statistics(engine, "Q").rows):
        names = ("percent_of_control", "robust_z", "b_score", "z_prime", "ssmd", "signal_window", "edge_p", "row_p")
        assert {row.get(name) for name in names} == {None}
    with pytest.raises(SesmoError, match="plate Q: the negative control wells all have the same score"):
        compounds.hits(engine, ["Q"])
    with pytest.raises(SesmoError, match="plate P: the negative control wells all have the same score"):
        compounds.hits(engine, ["P"])
    with engine.begin() as connection:
        connection.execute(update(FieldScore).values(n=0, sum=0.0, sum_sq=0.0, n_over=0))
    empty = screens.plate_wells(engine, "P")
    assert {(row["score"], row["percent_of_control"], row["fraction_low"]) for row in empty.rows} == {
        (None, None, None)
    }
    assert {row["n_cells"] for row in empty.rows} == {0}
    with pytest.raises(SesmoError, match="0 negative control wells"):
        screens.band_of(screens.load_screen(engine, "P"))
    engine.dispose()


def test_a_well_of_two_roles_and_wrong_words_are_one_sentence(tmp_path: Path, sesmo: Sesmo) -> None:
    engine = open_store(tmp_path / "s.db")
    wells = plate_map_96()
    both = [*wells, Treatment("A01", "Etoposide", "positive")]
    add_plate(engine, "P", WELLS_96, image_wells(np.random.default_rng(4), planted_96(3)), both)
    db = ("--db", tmp_path / "s.db")
    for words, said in (
        (("plate", "P", "--statistics"), "well A01 is a negative and a positive control at once"),
        (("hits", "--plate", "P"), "well A01 is a negative and a positive control at once"),
        (("plate", "P", "--statistics", "--timepoint", 1), "leave out --timepoint"),
        (("hits", "--plate", "Q"), "there is no plate 'Q'"),
        (("hits", "--plate", "P", "--fdr", 2), "not between 0 and 1"),
        (("compare", "--model", "mine"), "1 models were named and two are compared"),
        (("compound", "dmso", "--fit", "--bridge"), "leave one out"),
        (("compound", "dmso", "--over-time"), "belongs to --fit"),
    ):
        assert said in sentence(sesmo(*words, *db, code=2))
    done = sesmo("plate", "P", "--format", "json", *db)
    assert "well A01 is a negative and a positive control at once" in done.err
    assert {row["robust_z"] for row in json.loads(done.out)} == {None}
    with engine.begin() as connection:
        connection.execute(
            update(WellTreatment).where(WellTreatment.role == "treatment").values(dose=-1.0, dose_um=-1.0)
        )
        connection.execute(update(WellTreatment).where(WellTreatment.well == "A01").values(role="negative"))
    done = sesmo("compound", "Compound A", "--fit", *db)
    assert "a dose of -1 is below zero" in done.err
    engine.dispose()


@pytest.mark.alone
def test_all_statistics_of_a_384_well_plate_of_100_looks_take_two_seconds(tmp_path: Path) -> None:
    """Intervals, controls, plate effects, onset, slopes, hits, curves; reading the sums is told beside."""
    wells = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]
    fields = image_wells(np.random.default_rng(5), np.full((384, 100), 0.1), fields=1, well_noise=0.1)
    engine = open_store(tmp_path / "s.db")
    treatments = []
    for number, well in enumerate(wells):
        column = int(well[1:])
        role = "negative" if column in (1, 2) else "positive" if column in (23, 24) else "treatment"
        dose = 10.0 ** ((number // 24) % 8 - 3)
        name = "DMSO" if role == "negative" else "Etoposide" if role == "positive" else f"C{(column - 3) // 1}"
        item = Treatment(well, name, "treatment", dose, "µM", dose)
        treatments.append(
            item if role == "treatment" else Treatment(well, name, "negative" if column < 3 else "positive")
        )
    add_plate(engine, "P", wells, fields, treatments)
    compounds.dose_responses(engine, "P")  # what is imported once is not counted
    began = time.process_time()
    screen = screens.load_screen(engine, "P")
    read = time.process_time() - began
    began = time.process_time()
    said: dict[str, None] = {}
    assert len(export.intervals(screen)) == 38_400
    for column in range(100):
        screens._statistics_at(screen, column)
        screens.beside_controls(screen, column)
    band = screens.band_of(screen)
    for place in range(384):
        screens.course_of(screen, place, band, said)
    compounds._effects(screen, 99, said)
    spent = time.process_time() - began
    fitted = time.process_time()
    for name in {item.compound for item in treatments if item.role == "treatment"}:
        compounds.fit_at(screen, name, 99)
    fitted = time.process_time() - fitted
    figure(f"read {read:.2f} s, statistics {spent:.2f} s, 20 curves {fitted:.2f} s of CPU")
    assert spent + fitted < 2
    engine.dispose()


@pytest.mark.alone
def test_a_history_over_1000_plates_takes_a_fifth_of_a_second(tmp_path: Path) -> None:
    engine = many_plates(tmp_path / "s.db", 1000)
    history.compound_history(engine, "Doxorubicin")
    spent = []
    for _ in range(5):
        began = time.process_time()
        answer = history.compound_history(engine, "Doxorubicin")
        spent.append(time.process_time() - began)
    assert len(answer.rows) == 3000
    assert {row["plate"] for row in answer.rows} == {f"P{number:04d}" for number in range(1000)}
    figure(f"1 000 plates, 3 000 of 24 000 wells: {1000 * min(spent):.0f} to {1000 * max(spent):.0f} ms of CPU")
    assert min(spent) < 0.2
    engine.dispose()


def many_plates(path: Path, number: int) -> Engine:
    """Return a database of plates of 24 wells, of which three hold doxorubicin and four the controls."""
    from sqlalchemy import insert

    from db.schema import Compound, Plate

    engine = open_store(path)
    wells = WELLS_96[:24]
    plates = [
        {"id": key, "name": f"P{key - 1:04d}", "key": f"p{key - 1:04d}", "run": "1", "channels": {}, "planes": [0],
         "created_at": START}
        for key in range(1, number + 1)
    ]  # fmt: skip
    with engine.begin() as connection:
        connection.execute(insert(Plate), plates)
        connection.execute(insert(Compound), [{"id": 1, "name": "Doxorubicin", "key": "doxorubicin"}])
        images, scores, treatments = [], [], []
        for key in range(1, number + 1):
            when = START + timedelta(days=key)
            for place, well in enumerate(wells):
                image = (key - 1) * 24 + place + 1
                images.append(
                    {"id": image, "path": f"/a/{key}/{well}.tif", "name": "x", "page": 0, "plate_id": key, "well": well,
                     "field": 0, "timepoint": 1, "channel": "P", "size": 1, "mtime_ns": 1, "state": "scored",
                     "seen_at": START, "acquired_at": when + timedelta(hours=48), "acquired_from": "metadata"}
                )  # fmt: skip
                scores.append(
                    {"image_id": image, "model_id": 1, "n": 60, "sum": 20.0, "sum_sq": 9.0, "n_over": 12,
                     "histogram": [], "quality": {}, "scored_at": START}
                )  # fmt: skip
                if place < 3:
                    dose = 10.0 ** (place - 1)
                    treatments.append(
                        {"plate_id": key, "well": well, "compound_id": 1, "role": "treatment", "dose": dose,
                         "dose_unit": "µM", "dose_um": dose, "treated_at": when}
                    )  # fmt: skip
        connection.execute(insert(Image), images)
        connection.execute(insert(FieldScore), scores)
        connection.execute(insert(WellTreatment), treatments)
    return engine


def test_hours_count_from_the_first_image_without_a_treatment_time(tmp_path: Path) -> None:
    engine = open_store(tmp_path / "s.db")
    fields = image_wells(np.random.default_rng(6), np.full((2, 3), 0.2))
    add_plate(engine, "P", ["A01", "A02"], fields, [Treatment("A02", "Doxo", "treatment", 1.0, "µM", 1.0)])
    rows = history.compound_history(engine, "doxo").rows
    assert [row["hours"] for row in rows] == [0.0, 4.0, 8.0]
    assert rows[0]["acquired_at"] == datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert not math.isnan(rows[0]["score"])
    engine.dispose()
