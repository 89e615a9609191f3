"""Screening statistics on real screens: LOPAC senescence, an Incucyte confluence export, pycytominer beside us."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sesmo_live.errors import SesmoError
from sesmo_live.screening import (
    area_under_curve,
    control_band,
    effect_against,
    false_discovery,
    robust_z,
    robust_z_prime,
    slope,
    ssmd,
    z_prime,
)
from tests.figures import figure


@pytest.mark.realdata
def test_a_senescence_screen_gives_z_prime_per_plate_and_ranked_hits(shared: Path) -> None:
    """LOPAC, four plates of 384 wells: Z′ against a direct computation, compounds ranked, two doses compared."""
    plates = lopac(shared)
    assert sorted(plates) == ["E31L458-0-5", "E31L458-3", "E31L459-0-5", "E31L459-3"]
    effects: dict[str, dict[str, float]] = {}
    for name, wells in plates.items():
        by_role = {role: [w["score"] for w in wells if w["role"] == role] for role in ("neg", "pos", "sample")}
        n, p = np.array(by_role["neg"]), np.array(by_role["pos"])
        direct = 1 - 3 * (np.sqrt(((n - n.mean()) ** 2).sum() / (len(n) - 1)) + p.std(ddof=1)) / abs(
            p.mean() - n.mean()
        )
        assert z_prime(n, p) == pytest.approx(direct, abs=1e-12)
        figure(f"{name}: Z′ {direct:.3f}, robust {robust_z_prime(n, p):.3f}, SSMD {ssmd(n, p):.2f}")
        found = {w["well"]: effect_against([w["score"]], n) for w in wells if w["role"] == "sample"}
        q = false_discovery([item.p for item in found.values()])
        order = np.argsort([item.p for item in found.values()])
        assert (np.diff(q[order]) >= 0).all()
        sizes = np.abs([item.effect_sd for item in found.values()])
        assert (np.diff(sizes[order]) <= 1e-12).all()  # one well each: the larger effect is the surer one
        assert effect_against(p, n).p < 1e-3
        figure(f"{name}: {np.count_nonzero(q < 0.05)} of {len(q)} compounds at q < 0.05")
        effects[name] = {w["compound"]: found[w["well"]].effect_sd for w in wells if w["role"] == "sample"}
    for low, high in (("E31L458-0-5", "E31L458-3"), ("E31L459-0-5", "E31L459-3")):
        both = sorted(effects[low].keys() & effects[high].keys())
        assert len(both) > 250
        agreement = np.corrcoef([effects[low][name] for name in both], [effects[high][name] for name in both])[0, 1]
        figure(f"{low} and {high}: {len(both)} compounds at two doses, correlation of effects {agreement:.2f}")


def lopac(shared: Path) -> dict[str, list[dict[str, Any]]]:
    folder = shared / "data" / "assays" / "lopac_senescence"
    with (folder / "GCGR-Lpc-Metadata_E31_plates458-459.csv").open(encoding="utf-8", newline="") as file:
        about = {(row["plate"], row["Well Name"]): row for row in csv.DictReader(file)}
    plates: dict[str, list[dict[str, Any]]] = {}
    with (folder / "E31_senscore_LOPAC_plates458-459.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            known = about[row["Metadata_platename"], row["Metadata_well"]]
            plates.setdefault(row["Metadata_platename"], []).append(
                {
                    "well": row["Metadata_well"],
                    "score": float(row["sen_score"]),
                    "role": known["Annotation"],
                    "compound": known["chemical_name"],
                }
            )
    return plates


@pytest.mark.realdata
def test_normalisation_agrees_with_pycytominer(shared: Path) -> None:
    pandas, pycytominer = pytest.importorskip("pandas"), pytest.importorskip("pycytominer")
    wells = lopac(shared)["E31L458-3"]
    table = pandas.DataFrame(
        {
            "Metadata_role": [w["role"] for w in wells],
            "Cells_score": [w["score"] for w in wells],
        }
    )
    options = {"features": ["Cells_score"], "meta_features": ["Metadata_role"], "samples": "Metadata_role == 'neg'"}
    theirs = pycytominer.normalize(table, method="mad_robustize", mad_robustize_epsilon=0, **options)
    ours = robust_z(table["Cells_score"], table["Cells_score"][table["Metadata_role"] == "neg"])
    assert ours == pytest.approx(theirs["Cells_score"].to_numpy(), rel=1e-4)
    figure(f"pycytominer mad_robustize: largest difference {np.abs(ours - theirs['Cells_score']).max():.1e}")


@pytest.mark.realdata
def test_a_confluence_export_as_time_course_with_its_plate_map(shared: Path) -> None:
    """Incucyte: 60 wells, a look every 4 h for 11 days; three DMSO wells a density are too few for a band."""
    hours, courses, contents = incucyte(shared)
    assert len(courses) == 60
    assert len(hours) > 60
    assert (np.diff(hours) > 0).all()
    dense = [well for well, (_, _, density) in contents.items() if density == "8 x 10e4/mL" and well in courses]
    compounds = {contents[well][0] for well in dense}
    figure(f"Incucyte: {len(hours)} looks, {len(dense)} wells at 8 x 10e4/mL with {', '.join(sorted(compounds))}")
    negative = np.array([courses[well] for well in dense if contents[well][0] == "DMSO"])
    treated = {well: courses[well] for well in dense if contents[well][0] != "DMSO"}
    with pytest.raises(SesmoError, match=f"{len(negative)} negative control wells and at least 4"):
        control_band(negative, wells=len(treated))
    rates = [slope(hours[:20], well[:20]) for well in negative]
    assert all(0 < low < rate < high for rate, low, high in rates)
    areas = {well: area_under_curve(hours, values, negative.mean(axis=0)) for well, values in treated.items()}
    highest = max((contents[well][1] or 0, well) for well in treated)[1]
    assert areas[highest] == min(areas.values())
    figure(
        f"DMSO grows {np.mean([rate for rate, *_ in rates]):.2f} % an hour; {highest} misses {-areas[highest]:.0f} % h"
    )


def incucyte(shared: Path) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, tuple[str, float | None, str]]]:
    """Return hours, confluence by well, and (compound, dose, growth condition) by well."""
    folder = shared / "data" / "plates" / "incucyte"
    lines = (folder / "example_data.txt").read_text(encoding="utf-8-sig").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("Date Time"))
    rows = list(csv.DictReader([line for line in lines[first:] if line.strip()], delimiter="\t"))
    hours = np.array([float(row["Elapsed"]) for row in rows])
    wells = [name for name in rows[0] if name not in ("Date Time", "Elapsed")]
    courses = {well: np.array([float(row[well]) for row in rows]) for well in wells}
    contents = {}
    with (folder / "example_platemap.txt").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            well = f"{'ABCDEFGH'[int(row['row']) - 1]}{row['col']}"
            dose = None if row["conc"] == "NA" else float(row["conc"])
            contents[well] = (row["sampleid"], dose, row["growthcondition"])
    return hours, courses, contents
